"""Known functions compared with their environments."""

import pickle
import warnings
from fnmatch import fnmatchcase

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions import ENV_FUNCTIONS

CLASSIC = ["CartPole-v0", "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
ROBOTS = [
    "InvertedPendulum",
    "InvertedDoublePendulum",
    "Hopper",
    "Walker2d",
    "HalfCheetah",
    "Ant",
    "Humanoid",
    "HumanoidStandup",
]
ROBOTS += ["Swimmer", "Reacher", "Pusher"]
MUJOCO = [f"{robot}-v{version}" for robot in ROBOTS for version in (4, 5) if (robot, version) != ("Pusher", 4)]


def make(env_id: str, **kwargs) -> gym.Env:
    if env_id not in CLASSIC:
        pytest.importorskip("mujoco")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "-v4 is out of date"
        return gym.make(env_id, **kwargs)


def functions_of(env_id: str, env: gym.Env) -> EnvFunctions:
    (spec,) = [spec for spec in ENV_FUNCTIONS if any(fnmatchcase(env_id, pattern) for pattern in spec.env_ids)]
    functions = spec.factory(env)  # type: ignore[operator]
    return pickle.loads(pickle.dumps(functions))  # agents save them


def collect(env: gym.Env, n_steps: int, action=None) -> dict[str, np.ndarray]:
    """Collect random steps over several episodes, laid out as SB3 stores them (in the environment's own precision)."""
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for _ in range(n_steps):
        a = env.action_space.sample() if action is None else action(obs)
        next_obs, reward, terminated, truncated, _ = env.step(a)
        rows.append((obs, np.atleast_1d(a), next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    return dict(
        zip(("obs", "action", "next_obs", "reward", "terminated"), map(np.array, zip(*rows, strict=True)), strict=True)
    )


def check(functions: EnvFunctions, rows: dict[str, np.ndarray]) -> None:
    exact = [th.as_tensor(rows[key]) for key in ("obs", "action", "next_obs")]
    stored = [part.float() if part.is_floating_point() else part for part in exact]
    if functions.termination_fn is not None:
        for parts in (exact, stored):
            terminated = functions.termination_fn(*parts)
            assert terminated.dtype == th.bool
            assert terminated.tolist() == rows["terminated"].tolist()
    if functions.reward_fn is not None:
        reward = functions.reward_fn(*exact)
        assert reward.shape == (len(rows["reward"]),)
        np.testing.assert_allclose(reward, rows["reward"], rtol=1e-5, atol=1e-5)
