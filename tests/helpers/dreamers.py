"""Small Dreamers, and environments for them."""

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv

from sb3_mbrl import DreamerV3

MODEL = {"deter": 16, "units": 8, "stoch": 3, "classes": 4, "hidden": 8, "blocks": 4, "depth": 2, "bins": 15}
SMALL = {
    "world_model_kwargs": MODEL,
    "policy_kwargs": {"layers": 1, "bins": 15},
    "batch_size": 4,
    "batch_length": 8,
    "horizon": 3,
    "replay_value_scale": 0.3,
    "buffer_size": 1000,
    "train_freq": 8,
    "learning_starts": 40,
    "seed": 0,
    "device": "cpu",
}


def small(env="CartPole-v1", policy="MlpPolicy", **kwargs):
    return DreamerV3(policy, env, **{**SMALL, **kwargs})


def weights(agent):
    modules = (agent.world_model, agent.policy)
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left, right):
    return all(th.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


def spaces_of(env_id):
    env = gym.make(env_id)
    return env.observation_space, env.action_space


class ImageEnv(FakeImageEnv):
    def __init__(self, discrete=True):
        super().__init__(screen_height=12, screen_width=16, n_channels=1, discrete=discrete)


class ActionEnv(gym.Env):
    """An environment of a ``Discrete`` observation and any actions."""

    observation_space = spaces.Discrete(5, start=2)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 2, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return 2 + self.t % 5, 1.0, self.t % 9 == 0, False, {}
