"""Small agents of MuZero, and an environment whose every step can be computed."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_mbrl import MuZero

SMALL = {
    "world_model_kwargs": {"latent": 8, "units": 16, "bins": 11, "value_range": 20.0},
    "num_simulations": 4,
    "unroll_steps": 3,
    "td_steps": 2,
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 200,
    "target_update_interval": 5,
    "gamma": 0.9,
    "seed": 0,
    "device": "cpu",
}


def small(env="CartPole-v1", policy="MlpPolicy", **settings):
    return MuZero(policy, env, **{**SMALL, **settings})


class Count(gym.Env):
    """
    The observation is the number of steps so far, the reward ten times that number; after ``length`` steps the episode ends by
    a time limit, or by termination.
    """

    observation_space, action_space = spaces.Box(0, 99, (1,)), spaces.Discrete(3)

    def __init__(self, length=4, terminates=False):
        self.length, self.terminates = length, terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        obs = np.array([self.t], np.float32)
        return obs, 10.0 * self.t, over and self.terminates, over and not self.terminates, {}
