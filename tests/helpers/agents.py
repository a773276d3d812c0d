"""Small agents and awkward environments."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import WorldModelSpec
from sb3_mbrl.models.mlp import MLPModel

TINY: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [16]},
    "learning_starts": 50,
    "gradient_steps": 1,
    "batch_size": 32,
    "buffer_size": 5000,
    "seed": 0,
    "device": "cpu",
    "imagination_kwargs": {"freq": 25, "starts_per_step": 4, "max_age": 200},
    "fit_freq": 100,
}
LEARNED = {"world_model_kwargs": {"members": 2, "elites": 1, "hidden": [16]}, "fit_kwargs": {"max_epochs": 2}}


def tiny(env: Any = "Pendulum-v1", **kwargs: Any) -> MBPO:
    """Make an agent with the exact twin of Pendulum, or with the given settings."""
    return MBPO("MlpPolicy", env, **{**TINY, "world_model": "pendulum", **kwargs})


def learned(env: Any = "Pendulum-v1", **kwargs: Any) -> MBPO:
    """Make an agent with a small learned ensemble."""
    return MBPO("MlpPolicy", env, **{**TINY, **LEARNED, **kwargs})


class NoiseEnv(gym.Env):
    """An environment of pure noise: no model can beat predicting the mean."""

    observation_space: spaces.Space = spaces.Box(-5, 5, (3,))
    action_space: spaces.Space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._obs(), float(self.np_random.normal()), False, bool(self.np_random.random() < 0.05), {}

    def _obs(self) -> np.ndarray:
        return self.np_random.uniform(-2, 2, 3).astype(np.float32)


class DictEnv(gym.Env):
    """A point on a line, seen as a dictionary; the episode ends when it leaves the line."""

    observation_space = spaces.Dict(
        place=spaces.Box(-3, 3, (1,)), side=spaces.Discrete(2), flags=spaces.MultiBinary(2), zone=spaces.MultiDiscrete([2, 3])
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1, 1)), 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.x, self.t = self.x + 0.5 * float(action[0]), self.t + 1
        return self._obs(), -abs(self.x), abs(self.x) > 2, self.t >= 20, {}

    def _obs(self) -> dict:
        x = np.clip(self.x, -3, 3)
        return {
            "place": np.array([x], np.float32),
            "side": np.int64(x > 0),
            "flags": np.array([x > 1, x < -1], np.int8),
            "zone": np.array([x > 0, int(np.digitize(x, [-1, 1]))]),
        }


class BrokenEnv(gym.Wrapper):
    """An environment that returns something not finite at one step."""

    def __init__(self, env: gym.Env, at: int, what: str) -> None:
        super().__init__(env)
        self.at, self.what, self.count = at, what, 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        if self.count == self.at:
            if self.what == "reward":
                reward = float("nan")
            elif isinstance(obs, dict):
                obs = {**obs, self.what: np.full_like(obs[self.what], np.inf)}
            else:
                obs = np.full_like(obs, np.nan)
            truncated = truncated or self.what == "terminal"
        return obs, reward, terminated, truncated, info


class Counter(gym.Env):
    """An environment whose observation is the number of steps since the reset; an episode has 1,000."""

    observation_space: spaces.Space = spaces.Box(0, 10_000, (1,))
    action_space: spaces.Space = spaces.Box(-1, 1, (1,))

    def __init__(self, length: int = 1_000) -> None:
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), float(self.t), False, self.t >= self.length, {}

    def _obs(self):
        return np.array([self.t], np.float32)


QUICK = {
    "learning_starts": 20,
    "fit_freq": 20,
    "batch_size": 16,
    "fit_kwargs": {"max_batches": 20, "batch_size": 16},
    "imagination_kwargs": {"freq": 10, "starts_per_step": 4, "max_age": 30},
}


def quick(env="Pendulum-v1", **kwargs) -> MBPO:
    return learned(env, **{**QUICK, **kwargs})


def intact(agent: MBPO, steps: int, tmp_path) -> None:
    """Check that nothing is lost: the buffer has its rows, and the agent can be saved and loaded."""
    assert agent.replay_buffer.pos == steps
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent").num_timesteps == agent.num_timesteps


class OffersMLP:
    """A plug-in that offers one world model."""

    def __init__(self, **record):
        self.record = {"name": "mine", "factory": MLPModel, **record}

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(**self.record)]


def weights(agent) -> list[th.Tensor]:
    return [value for value in agent.policy.state_dict().values()]


def same(one, other) -> bool:
    return all(th.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
