"""SB3's algorithms train in ``ModelVecEnv``, each as in any other environment."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecMonitor

from sb3_mbrl.envs.model_vec_env import ModelVecEnv
from sb3_mbrl.testing import CASES, NeighbourToy
from tests.envs.models import ZERO, fitted, linear

UNIT, THREE = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)
HORIZON = 10

LEARNERS = [
    (PPO, UNIT, 8_000, {"n_steps": 20, "batch_size": 80, "n_epochs": 5, "learning_rate": 3e-3}),
    (A2C, UNIT, 24_000, {"n_steps": 5, "learning_rate": 3e-3}),
    (TRPO, UNIT, 8_000, {"n_steps": 20, "batch_size": 80, "target_kl": 0.05}),
    (SAC, UNIT, 8_000, {"learning_rate": 3e-3, "learning_starts": 200, "batch_size": 64, "ent_coef": 0.01}),
    (DQN, THREE, 8_000, {"learning_rate": 3e-3, "learning_starts": 200, "target_update_interval": 160, "train_freq": 1}),
]


@pytest.mark.parametrize(
    ("case", "policy"),
    [(0, "MlpPolicy"), (1, "MlpPolicy"), (2, "MlpPolicy"), (5, "MultiInputPolicy")],
    ids=lambda value: str(value),
)
def test_ppo_learns_in_any_space(case, policy):
    model, data = fitted(NeighbourToy, CASES[case])
    env = VecMonitor(ModelVecEnv(model, data, n_envs=2, horizon=4))
    agent = PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    agent.learn(64)
    assert agent.num_timesteps == 64
    assert len(agent.ep_info_buffer) >= 64 // 4
    assert all(1 <= episode["l"] <= 4 for episode in agent.ep_info_buffer)


def test_an_off_policy_agent_stores_time_limits_as_such():
    env = ModelVecEnv(linear(spaces.Discrete(3)), ZERO, n_envs=1, horizon=5)
    agent = DQN("MlpPolicy", env, learning_starts=1000, buffer_size=100, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    agent.learn(20)
    assert agent.replay_buffer.dones[:20].sum() == 4
    assert agent.replay_buffer.timeouts[:20].sum() == 4


@pytest.mark.parametrize(
    ("cls", "action_space", "steps", "settings"), LEARNERS, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_best_action_of_the_linear_system_is_found(cls, action_space, steps, settings):
    model = linear(action_space, noise=0.05)
    env = ModelVecEnv(model, ZERO, n_envs=16, horizon=HORIZON, seed=0)
    agent = cls("MlpPolicy", env, gamma=0.9, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **settings)
    agent.learn(steps)
    evaluation = ModelVecEnv(model, ZERO, n_envs=32, horizon=HORIZON, deterministic=True)
    obs, total = evaluation.reset(), np.zeros(32)
    for _ in range(HORIZON):
        obs, reward, _, _ = evaluation.step(agent.predict(obs, deterministic=True)[0])
        total += reward
    best = float(model.best_return(th.zeros(1, 3), HORIZON))
    assert total.mean() > 0.9 * best


def test_the_best_return_of_the_linear_system():
    """With decay 0.9 and gain 2: 2 * sum_{t=1..10} (1 - 0.9^t) / 0.1."""
    best = float(linear().best_return(th.zeros(1, 3), HORIZON))
    assert best == pytest.approx(sum(2 * (1 - 0.9**t) / 0.1 for t in range(1, 11)), rel=1e-5)
