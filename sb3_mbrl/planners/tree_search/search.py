"""``TreeSearch``: Monte Carlo tree search in a batch of trees, with one call of the network per simulation."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_mbrl import jit
from sb3_mbrl.checks import number, user_stacklevel, whole
from sb3_mbrl.planners.tree_search import kernels
from sb3_mbrl.planners.tree_search.kernels import Rule, advance, root_values
from sb3_mbrl.planners.tree_search.root import add_noise, considered_visits, root_logits, softmax
from sb3_mbrl.planners.tree_search.tree import Leaf, States, Tree, new_arrays
from sb3_mbrl.trees import State

New = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Logits ``(B, A)``, values, rewards, discounts and chance nodes ``(B,)`` of the new nodes, contiguous in memory"""

_FLOAT = np.dtype(np.float32)

Expand = Callable[[State, np.ndarray], Leaf]
"""A function from states ``(B, ...)`` and the indices of edges, ``(B,)`` integers, to the nodes at their ends"""

MOST_SIMULATIONS = 1_000_000
"""The largest number of simulations of a search, whose trees are allocated before it begins"""

KINDS = {"gumbel": kernels.GUMBEL, "puct": kernels.PUCT}
NORMS = {"siblings": kernels.SIBLINGS, "tree": kernels.WHOLE_TREE, "none": kernels.AS_THEY_ARE}
UNVISITED = {"zero": kernels.LOWEST, "parent": kernels.PARENT}

_OWN: dict[str, dict[str, Any]] = {
    "gumbel": {"max_considered_actions": 16, "c_visit": 50.0, "c_scale": 0.1, "gumbel_scale": 1.0},
    "puct": {
        "pb_c_init": 1.25, "pb_c_base": 19652.0, "dirichlet_alpha": "auto", "exploration_fraction": 0.25, "fpu": "zero",
    },
}  # fmt: skip
"""The settings of each kind alone, with their defaults"""


class SearchResult(NamedTuple):
    """
    The result of a search from ``B`` roots.

    :param action: the chosen edges, ``(B,)`` integers, never masked ones
    :param policy: the improved policies, the training targets, ``(B, A)``: ``softmax(logits + sigma(completed Q))`` (Gumbel),
        or the shares of visits (PUCT); 0 at masked edges
    :param value: the search's values of the roots, ``(B,)``: the means of all returns
    :param visits: the visits of the roots' edges, ``(B, A)`` integers
    :param q: the Q-values of the roots' edges, ``(B, A)``: ``r + d v`` where visited, elsewhere the mixed value
    :param tree: the trees
    :param seconds: the wall time spent in the ``"tree"`` and in ``"network"``, which is ``expand``
    """

    action: np.ndarray
    policy: np.ndarray
    value: np.ndarray
    visits: np.ndarray
    q: np.ndarray
    tree: Tree
    seconds: dict[str, float]


class TreeSearch:
    """
    Monte Carlo tree search with learned (or true) dynamics, for a batch of roots. It holds settings only, and no network.

    Each simulation walks from the root to an edge that is new (:func:`~.kernels.select`), asks ``expand`` for the node at its
    end, for all trees in one call, and adds the value found there to all nodes on the way back
    (:func:`~.kernels.backup`). An edge of discount 0 has ended the episode: nothing is expanded behind it.

    ``kind="gumbel"`` (the default) is Gumbel MuZero, good with few simulations; ``kind="puct"`` is
    MuZero's and AlphaZero's search.

    :param kind: ``"gumbel"`` or ``"puct"``
    :param num_simulations: the number of simulations of a search, at least 1
    :param max_considered_actions: Gumbel: the number ``m`` of edges between which the root's simulations are shared
    :param c_visit: Gumbel: the visits that are added to the largest number of visits in the scale of Q-values
    :param c_scale: Gumbel: the scale of normalised Q-values against logits
    :param gumbel_scale: Gumbel: the scale of the noise
    :param q_norm: the normalisation of Q-values: ``"siblings"``: by the lowest and highest of a node's own edges, as in mctx;
        ``"tree"``: by those of the whole tree, as in MuZero; ``"none"``. ``"auto"``: ``"siblings"`` for Gumbel, ``"tree"`` for
        PUCT. Siblings make the smallest difference look like a won game, so that Gumbel search without a good value function
        may give up a move for good after one bad reply; with ``"none"``, for values within [-1, 1] as on boards, it does not
    :param min_q_range: the smallest difference between highest and lowest that is stretched to 1; smaller ones stay small
    :param pb_c_init: PUCT: the weight of the prior
    :param pb_c_base: PUCT: the number of visits from which on the weight of the prior grows
    :param dirichlet_alpha: PUCT: the parameter of the noise at the root; ``"auto"``: 10 over the number of legal actions
    :param exploration_fraction: PUCT: the share of the noise in the root's prior
    :param fpu: PUCT: the normalised value of edges that were never visited (first-play urgency): ``"zero"``: 0, as in MuZero;
        ``"parent"``: that of their node
    """

    def __init__(
        self,
        kind: str = "gumbel",
        *,
        num_simulations: int = 50,
        max_considered_actions: int = 16,
        c_visit: float = 50.0,
        c_scale: float = 0.1,
        gumbel_scale: float = 1.0,
        q_norm: str = "auto",
        min_q_range: float = 1e-8,
        pb_c_init: float = 1.25,
        pb_c_base: float = 19652.0,
        dirichlet_alpha: float | str = "auto",
        exploration_fraction: float = 0.25,
        fpu: str = "zero",
    ) -> None:
        self.kind = _one_of("kind", kind, KINDS)
        given = locals()
        for other in KINDS.keys() - {kind}:
            wrong = [name for name, default in _OWN[other].items() if given[name] != default]
            if wrong:
                raise ValueError(
                    f"{', '.join(wrong)} belong to kind={other!r}, and the search is kind={kind!r}: leave them out"
                )
        self.num_simulations = _number_of_simulations(num_simulations)
        self.max_considered_actions = whole("max_considered_actions", max_considered_actions, 1)
        self.gumbel_scale = number("gumbel_scale", gumbel_scale, 0.0)
        self.q_norm = q_norm if q_norm != "auto" else {"gumbel": "siblings", "puct": "tree"}[kind]
        self.dirichlet_alpha = None
        if dirichlet_alpha != "auto":
            self.dirichlet_alpha = number("dirichlet_alpha", dirichlet_alpha, 0.0, open_low=True)
        self.exploration_fraction = number("exploration_fraction", exploration_fraction, 0.0, 1.0)
        self.rule = Rule(
            kind=KINDS[kind],
            q_norm=NORMS[_one_of("q_norm", self.q_norm, NORMS)],
            min_q_range=number("min_q_range", min_q_range, 0.0, open_low=True),
            c_visit=number("c_visit", c_visit, 0.0),
            c_scale=number("c_scale", c_scale, 0.0),
            fpu=UNVISITED[_one_of("fpu", fpu, UNVISITED)],
            pb_c_init=number("pb_c_init", pb_c_init, 0.0),
            pb_c_base=number("pb_c_base", pb_c_base, 0.0, open_low=True),
        )
        self._settings = np.array(self.rule, np.float64)
        _say_if_slow()

    @th.no_grad()
    def search(
        self,
        root: Leaf,
        expand: Expand,
        *,
        mask: np.ndarray | None = None,
        num_simulations: int | None = None,
        rng: np.random.Generator | None = None,
        deterministic: bool = False,
        temperature: float = 1.0,
    ) -> SearchResult:
        """
        Search from ``B`` roots.

        :param root: the roots
        :param expand: the function that makes the nodes at the ends of edges; called once per simulation, always with ``B``
            rows, in the order of the trees. Rows whose walk ends where an episode has ended are expanded again, and not used
        :param mask: ``(B, A)`` booleans, true where an action is legal at the root
        :param num_simulations: the number of simulations; ``None``: that of the constructor. It may be below
            ``max_considered_actions``: then only that many actions are visited
        :param rng: the source of all noise; ``None``: one from the operating system
        :param deterministic: whether to leave out all noise and take the best action
        :param temperature: the temperature of the choice of actions. Gumbel: the scale of the noise is multiplied by it.
            PUCT: actions are drawn with probabilities proportional to ``visits ** (1 / temperature)``
        :raises ValueError: for a mask of the wrong shape, a root without a legal action, and numbers that are not finite
        """
        start, network = time.perf_counter(), 0.0
        simulations = self.num_simulations if num_simulations is None else _number_of_simulations(num_simulations)
        temperature = number("temperature", temperature, 0.0)
        rng = rng if rng is not None else np.random.default_rng()
        logits, legal = root_logits(root, mask)
        logits, score, considered = self._plan_root(logits, legal, simulations, deterministic, temperature, rng)
        rows, edges = logits.shape
        arrays = new_arrays(rows, simulations, edges)
        states = States(root.state, simulations + 1)
        where, chosen = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        places = th.from_numpy(where)  # the same memory: advance() writes into it where the next simulation has ended
        never = np.zeros(rows, np.bool_)
        ours = (score, considered, self._settings, where, chosen, np.empty(edges), *arrays)
        zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)  # no edge leads to a root
        bad = advance(0, *_arrays(Leaf(None, logits, root.value, zeros, ones), score.shape, never), *ours)
        if bad >= 0:
            raise ValueError(f"Root {bad} has the value {root.value[bad]} and the logits {root.logits[bad]}: give numbers")
        for i in range(1, simulations + 1):
            before = time.perf_counter()
            leaf = expand(states.get(places), chosen.copy())
            network += time.perf_counter() - before
            states.put(i, leaf.state)
            new = _arrays(leaf, score.shape, never)
            bad = advance(i, *new, *ours)
            if bad >= 0:
                numbers_of = dict(zip(("logits", "value", "reward", "discount"), (part[bad] for part in new), strict=False))
                raise ValueError(f"expand returned numbers that are not finite for tree {bad} in simulation {i}: {numbers_of}")
        tree = Tree(*arrays)
        tree.states = states.all
        action, policy, q = self._decide(tree, logits, score, legal, deterministic, temperature, rng)
        seconds = {"tree": time.perf_counter() - start - network, "network": network}
        return SearchResult(action, policy, tree.value[:, 0].astype(np.float32), tree.visits[:, 0].copy(), q, tree, seconds)

    def _plan_root(
        self,
        logits: np.ndarray,
        legal: np.ndarray,
        simulations: int,
        deterministic: bool,
        temperature: float,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Draw the noise of the roots, and plan the visits of their edges.

        :return: the logits, with Dirichlet noise for PUCT; and, for Gumbel search, the scores ``g + logits``, ``(B, A)``, and
            the number of visits of the edges that each simulation considers, ``(simulations, B)``
        """
        score, considered = np.zeros(logits.shape), np.zeros((simulations, len(logits)), np.int32)
        if self.kind == "gumbel":
            noise = 0.0 if deterministic else self.gumbel_scale * temperature
            score = logits - logits.max(1, keepdims=True) + (noise * rng.gumbel(size=logits.shape) if noise else 0.0)
            most = min(self.max_considered_actions, legal.shape[1])
            considered = np.ascontiguousarray(considered_visits(most, simulations)[np.minimum(legal.sum(1), most)].T)
        elif not deterministic and self.exploration_fraction:
            noisy = softmax(logits)
            add_noise(noisy, legal, self.dirichlet_alpha, self.exploration_fraction, rng)
            with np.errstate(divide="ignore"):
                logits = np.log(noisy)
        return logits, score, considered

    def _decide(
        self,
        tree: Tree,
        logits: np.ndarray,
        score: np.ndarray,
        legal: np.ndarray,
        deterministic: bool,
        temperature: float,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the actions, the improved policies and the Q-values of the roots."""
        visits = np.where(legal, tree.visits[:, 0], -1)
        q, sigma = np.empty(legal.shape), np.empty(legal.shape)
        root_values(self._settings, q, sigma, *tree)
        most = visits == visits.max(1, keepdims=True)
        if self.kind == "gumbel":
            # The best of the most visited: the last edges that sequential halving has left.
            action = np.where(most, np.maximum(score + sigma, -1e9), -np.inf).argmax(1)
            policy = softmax(np.where(legal, logits + sigma, -np.inf))
        else:
            policy = np.maximum(visits, 0) / np.maximum(visits, 0).sum(1, keepdims=True)
            if deterministic or temperature == 0.0:
                action = np.where(most, q, -np.inf).argmax(1)
            else:
                with np.errstate(divide="ignore"):
                    powers = softmax(np.log(policy) / temperature)
                # Inverse transform sampling. Not above the sum, which rounding may leave below 1: edges after the last of
                # positive probability are never drawn.
                sums = powers.cumsum(1)
                action = (rng.random((len(sums), 1)) * sums[:, -1:] >= sums).sum(1)
        return action.astype(np.int64), policy.astype(np.float32), q.astype(np.float32)


def _arrays(leaf: Leaf, shape: tuple[int, ...], never: np.ndarray) -> New:
    """
    Return the numbers of new nodes as :func:`~.kernels.advance` takes them.

    :param leaf: the nodes
    :param shape: the shape of the logits of the roots, ``(B, A)``
    :param never: what ``chance`` is where there is none, ``(B,)``
    :raises ValueError: for other shapes, since compiled code does not check indices
    """
    array = np.ascontiguousarray
    logits, value, reward, discount = (
        array(leaf.logits, _FLOAT),
        array(leaf.value, _FLOAT),
        array(leaf.reward, _FLOAT),
        array(leaf.discount, _FLOAT),
    )
    chance = never if leaf.chance is None else array(leaf.chance, np.bool_)
    new = (logits, value, reward, discount, chance)
    if logits.shape == shape and value.shape == reward.shape == discount.shape == chance.shape == never.shape:
        return new
    raise ValueError(
        f"expand returned logits, values, rewards, discounts and chance nodes of the shapes "
        f"{', '.join(f'{array.shape}' for array in new)}: give {shape}, and {never.shape} for the others"
    )


def _number_of_simulations(given: Any) -> int:
    n = whole("num_simulations", given, 1)
    if n > MOST_SIMULATIONS:
        raise ValueError(
            f"num_simulations={n}: give at most {MOST_SIMULATIONS}, each of which is a node of the tree in memory"
        )
    return n


def _one_of(name: str, value: str, choices: dict[str, int]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
    return value


_said = False


def _say_if_slow() -> None:
    """Warn once per process that the search is not compiled."""
    global _said
    if not jit.COMPILED and not _said:
        _said = True
        warnings.warn(
            "Tree search runs in plain Python, many times slower than compiled: pip install numba",
            stacklevel=user_stacklevel(),
        )
