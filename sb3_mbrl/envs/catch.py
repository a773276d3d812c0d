"""Catch: a ball falls, and a paddle has to be under it. The optimal return is 1; random actions earn about -0.6."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CatchEnv(gym.Env[np.ndarray, np.int64]):
    """
    The environment ``Catch-v0``, with the rules of bsuite (Osband et al. 2020, arXiv 1908.03568): the ball starts in a random
    column of the first row and falls one row per step; the paddle, in the last row, moves left, stays or moves right. When the
    ball arrives, the episode terminates with a reward of 1 for a catch and -1 for a miss.

    :param rows: the number of rows of the board
    :param columns: the number of columns of the board
    :param pixels: the side of a field in pixels, for observations that are images of bytes, ``(rows * pixels, columns *
        pixels, 1)``; 0: observations are one number per field, ``(rows, columns)``
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's)

    def __init__(self, rows: int = 10, columns: int = 5, pixels: int = 0) -> None:
        if rows < 2 or columns < 1 or pixels < 0:
            raise ValueError(
                f"CatchEnv(rows={rows}, columns={columns}, pixels={pixels}): give at least 2 rows, 1 column and 0 pixels"
            )
        self.rows, self.columns, self.pixels = rows, columns, pixels
        self.observation_space = (
            spaces.Box(0, 255, (rows * pixels, columns * pixels, 1), np.uint8)
            if pixels
            else spaces.Box(0.0, 1.0, (rows, columns), np.float32)
        )
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new ball, with the paddle in the middle."""
        super().reset(seed=seed)
        self._row, self._ball = 0, int(self.np_random.integers(self.columns))
        self._paddle = self.columns // 2
        return self._board(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the paddle (0: left, 1: stay, 2: right), then the ball."""
        self._paddle = int(np.clip(self._paddle + int(action) - 1, 0, self.columns - 1))
        self._row += 1
        over = self._row == self.rows - 1
        reward = (1.0 if self._paddle == self._ball else -1.0) if over else 0.0
        return self._board(), reward, over, False, {}

    def _board(self) -> np.ndarray:
        board = np.zeros((self.rows, self.columns), np.float32)
        board[self._row, self._ball] = 1.0
        board[self.rows - 1, self._paddle] = 1.0
        if self.pixels:
            return np.kron(255 * board[..., None], np.ones((self.pixels, self.pixels, 1))).astype(np.uint8)
        return board


def register() -> None:
    """Register ``Catch-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    if "Catch-v0" not in gym.registry:
        gym.register("Catch-v0", entry_point="sb3_mbrl.envs.catch:CatchEnv")
