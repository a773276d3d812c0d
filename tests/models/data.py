"""Data of a known linear system."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData

OBS, ACT = spaces.Box(-20, 20, (2,)), spaces.Box(-3, 3, (1,))
SMALL = {"hidden": [32, 32], "device": "cpu"}


def linear_data(n: int = 1500, noise: float = 0.0, seed: int = 0) -> ReplayData:
    """x' = (x + 0.1 v, v + a), reward = x - a^2 in scaled actions; an episode ends when x > 1."""
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(n, OBS, ACT, device="cpu")
    for _ in range(n):
        obs, action = rng.uniform(-2, 2, (1, 2)), rng.uniform(-1, 1, (1, 1))
        next_obs = obs @ np.array([[1, 0], [0.1, 1]]) + action * np.array([[0, 1.0]]) + noise * rng.normal(size=(1, 2))
        buffer.add(obs, next_obs, action, obs[:, 0] - action[:, 0] ** 2, next_obs[:, 0] > 1, [{}])
    return ReplayData(buffer)
