"""Oracles of environments, and actions to follow them with."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.spaces import ActionCodec


def oracle_of(env: gym.Env, **kwargs) -> OracleModel:
    return OracleModel(env.observation_space, env.action_space, env=env, device="cpu", **kwargs)


def as_obs(env: gym.Env, obs) -> th.Tensor:
    value = th.as_tensor(np.array(obs))
    return (value.float() if value.is_floating_point() else value).reshape(1, -1)


def scaled_actions(space: gym.Space, n: int, seed: int = 0) -> th.Tensor:
    if isinstance(space, spaces.Box):
        return th.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (n, *space.shape)).astype(np.float32))
    return th.as_tensor(np.random.default_rng(seed).integers(0, space.n, (n, 1)))


def to_env(space: gym.Space, action: th.Tensor):
    value = ActionCodec(space).to_env(action[None])[0].numpy()
    return value if isinstance(space, spaces.Box) else int(value[0])


def advance(env: gym.Env, n: int, seed: int = 0):
    """Make some steps of an episode."""
    obs, _ = env.reset(seed=seed)
    for action in scaled_actions(env.action_space, n, seed):
        obs, _, terminated, truncated, _ = env.step(to_env(env.action_space, action))
        if terminated or truncated:
            obs, _ = env.reset()
    return obs
