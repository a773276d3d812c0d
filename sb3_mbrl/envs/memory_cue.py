"""A cue that has to be remembered: an agent without memory earns 0.5 on average, one that remembers 1."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class MemoryCueEnv(gym.Env[np.ndarray, np.int64]):
    """
    The environment ``MemoryCue-v0``. A cue is shown once, at the beginning; the last action has to match it. An agent without
    memory earns 0.5 on average, one that remembers 1.

    Observations are the cue (-1 or 1 at first, then 0) and whether it is time to act.

    :param length: the number of steps of an episode
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's)

    def __init__(self, length: int = 10) -> None:
        if length < 1:
            raise ValueError(f"MemoryCueEnv(length={length}): give at least 1")
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a new cue."""
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count a step. Only the last action matters: 0 is right for the cue -1, and 1 for the cue 1."""
        self._step += 1
        over = self._step == self.length
        return self._obs(), float(over and int(action) == self._cue), over, False, {}

    def _obs(self) -> np.ndarray:
        cue = 2.0 * self._cue - 1.0 if self._step == 0 else 0.0
        return np.array([cue, float(self._step == self.length - 1)], np.float32)


def register() -> None:
    """Register ``MemoryCue-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    if "MemoryCue-v0" not in gym.registry:
        gym.register("MemoryCue-v0", entry_point="sb3_mbrl.envs.memory_cue:MemoryCueEnv")
