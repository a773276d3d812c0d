"""Agents with SB3's ``predict`` that need no training."""

import numpy as np

from sb3_mbrl.envs.boards.line_game import LineGame
from sb3_mbrl.envs.boards.minimax import best_moves


class Exact:
    """
    An agent that plays a game perfectly; it knows the rules, and counts how often it is asked.

    :param game: the game
    :param blunders: positions, and the moves it makes there instead
    """

    def __init__(self, game: LineGame, blunders=None):
        self.game, self.blunders, self.batches = game, blunders or {}, []

    def predict(self, observation, state=None, episode_start=None, deterministic=False, action_masks=None):
        self.batches.append((len(observation), deterministic))
        assert action_masks.shape == (len(observation), self.game.n_actions)
        return np.array([self._move(planes) for planes in observation]), state

    def _move(self, planes):
        position = self.game.position_of(planes)
        return self.blunders.get(position, best_moves(self.game, position)[0])


class FirstSquare:
    """An agent without masks that always plays move 0, legal or not."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(len(observation), int), state
