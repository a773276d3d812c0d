"""
Small learning tests (``make test-slow``). Published results, with all seeds and the controls, are made by
examples/reproduce.
"""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_mbrl import MBPO, ModelVecEnv
from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.models.ensemble import EnsembleModel

pytestmark = pytest.mark.slow

RANDOM_RETURN = -1200.0
"""About what a random policy gets on Pendulum-v1 in an episode of 200 steps."""


def mean_return(agent) -> float:
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    return evaluate_policy(agent, env, 10, warn=False)[0]


@pytest.mark.parametrize("world_model", ["pendulum", "ensemble"])
def test_mbpo_swings_the_pendulum_up_within_800_real_steps(world_model):
    """With the exact twin (the machinery alone) and with a learned ensemble."""
    settings = MBPO.preset("Pendulum-v1")
    if world_model == "pendulum":
        settings = {**settings, "world_model_kwargs": {}}
    agent = MBPO("MlpPolicy", "Pendulum-v1", seed=7, device="cpu", **{**settings, "world_model": world_model}).learn(800)
    assert mean_return(agent) > -300


def test_ppo_learns_in_a_model_that_was_fitted_on_random_data():
    """A policy that PPO learns in a model works in the real environment."""
    source = MBPO("MlpPolicy", "Pendulum-v1", world_model=None, learning_starts=4000, seed=7, device="cpu").learn(4000)
    model = EnsembleModel(
        source.observation_space, source.action_space, members=5, elites=4, hidden=[64, 64], learning_rate=3e-3, device="cpu"
    )
    model.fit(ReplayData(source.replay_buffer), FitBudget(max_batches=3000))
    dream = VecMonitor(ModelVecEnv(model, source.replay_buffer, n_envs=16, horizon=100, seed=0))
    agent = PPO(
        "MlpPolicy", dream, n_steps=128, batch_size=256, gamma=0.95, gae_lambda=0.9, learning_rate=1e-3, seed=0, device="cpu"
    )
    assert mean_return(agent.learn(150_000)) > RANDOM_RETURN + 500


def test_ppo_in_the_exact_twin_is_ppo_in_the_environment():
    model = PendulumModel(device="cpu")
    dream = VecMonitor(ModelVecEnv(model, starts=_uniform_starts(), n_envs=16, horizon=200, seed=0))
    agent = PPO(
        "MlpPolicy", dream, n_steps=128, batch_size=256, gamma=0.95, gae_lambda=0.9, learning_rate=1e-3, seed=0, device="cpu"
    )
    assert mean_return(agent.learn(200_000)) > -400


def _uniform_starts() -> np.ndarray:
    env = gym.make("Pendulum-v1")
    return np.stack([env.reset(seed=seed)[0] for seed in range(200)])
