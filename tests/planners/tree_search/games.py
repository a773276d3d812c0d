"""True dynamics to search in: TicTacToe by bits, random tables."""

from functools import cache

import numpy as np
import torch as th

from sb3_mbrl.planners.tree_search import Leaf

LINES = np.array([0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124])
FULL = 0o777


def won(stones):
    """Whether stones, as bits, have three in a row."""
    return ((np.asarray(stones)[..., None] & LINES) == LINES).any(-1)


@cache
def minimax(own, other):
    """The value to the player to move: 1, 0 or -1."""
    if won(other):
        return -1
    if own | other == FULL:
        return 0
    return max(-minimax(other, own | 1 << a) for a in range(9) if not (own | other) >> a & 1)


@cache
def positions():
    """All positions that are not over, ``(4520, 2)``: the bits of the player to move, and of the other."""
    found, front = set(), {(0, 0)}
    while front:
        found |= front
        following = {(other, own | 1 << a) for own, other in front for a in range(9) if not (own | other) >> a & 1}
        front = {(own, other) for own, other in following if not won(other) and own | other != FULL}
    return np.array(sorted(found))


def tictactoe_leaf(state, reward, discount):
    """Uniform prior over free squares, values of zero."""
    taken = state[:, 0] | state[:, 1]
    logits = np.where(taken[:, None] >> np.arange(9) & 1, -np.inf, 0.0).astype(np.float32)
    return Leaf(th.as_tensor(state), logits, np.zeros(len(state), np.float32), reward, discount)


def tictactoe_root(state):
    return tictactoe_leaf(np.asarray(state), np.zeros(len(state), np.float32), np.ones(len(state), np.float32))


def tictactoe(state, edge):
    """One move: the player who moved is paid, and the other moves next."""
    own, other = state.numpy().T
    own = own | 1 << edge
    wins = won(own)
    over = wins | (own | other == FULL)
    return tictactoe_leaf(np.stack([other, own], 1), wins.astype(np.float32), np.where(over, 0.0, -1.0).astype(np.float32))


class Table:
    """A Markov decision process of random numbers: the edge ``a`` of state ``s`` leads to ``following[s, a]``."""

    def __init__(self, following, reward, discount, logits, value):
        self.following, self.reward, self.discount, self.logits, self.value = following, reward, discount, logits, value

    @classmethod
    def random(cls, rng, states, actions, players=1):
        shape = (states, actions)
        discount = rng.uniform(0.5, 1.0, shape) * (rng.choice([-1, 1], shape) if players == 2 else 1)
        discount[rng.random(shape) < 0.1] = 0.0  # an episode ends
        numbers = (rng.normal(size=shape), discount, 2 * rng.normal(size=shape), rng.normal(size=states))
        return cls(rng.integers(states, size=shape).astype(np.int32), *(part.astype(np.float32) for part in numbers))

    def _leaf(self, state, reward, discount):
        return Leaf(th.as_tensor(state), self.logits[state], self.value[state], reward, discount)

    def root(self, state):
        return self._leaf(state, np.zeros(len(state), np.float32), np.ones(len(state), np.float32))

    def expand(self, state, edge):
        state = state.numpy()
        return self._leaf(self.following[state, edge], self.reward[state, edge], self.discount[state, edge])
