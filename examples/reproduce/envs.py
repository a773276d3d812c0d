"""Environments of the learning benchmarks that the library does not have."""

from typing import Any

import gymnasium as gym
import numpy as np


class NoiseColumns(gym.ObservationWrapper):
    """Observations with as many columns of standard normal noise as they have numbers: half of them cannot be predicted."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        wide = np.full(space.shape, np.inf, np.float32)
        self.observation_space = gym.spaces.Box(np.append(space.low, -wide), np.append(space.high, wide), dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Append the noise."""
        noise = self.np_random.standard_normal(observation.shape).astype(np.float32)
        return np.append(observation, noise)


def make_noisy(env_id: str, **kwargs: Any) -> gym.Env:
    """Make an environment with columns of noise."""
    return NoiseColumns(gym.make(env_id, **kwargs))


gym.register("NoisyPendulum-v1", lambda **kwargs: make_noisy("Pendulum-v1", **kwargs))
