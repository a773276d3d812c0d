"""Evaluations in which the agent is told the legal actions."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl.cli.masks import with_masks
from sb3_mbrl.cli.progress import Evaluation
from tests.algorithms.muzero.agents import small


class OneLegal(gym.Env):
    """One step, in which one of three actions is legal: another one every time."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(3)
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        return np.zeros(1, np.float32), {}

    def action_masks(self):
        return np.arange(3) == self.episodes % 3

    def step(self, action):
        return np.zeros(1, np.float32), float(self.action_masks()[action]), True, False, {}


def env():
    return DummyVecEnv([OneLegal])


def test_agents_that_take_masks_choose_legal_actions():
    for agent in (small(env(), num_simulations=2), MaskablePPO("MlpPolicy", env(), n_steps=8, batch_size=8, device="cpu")):
        assert evaluate_policy(with_masks(agent, evaluated := env()), evaluated, 6, warn=False)[0] == 1.0


def test_other_agents_and_environments_are_left_alone():
    agent = small(num_simulations=2)
    assert with_masks(agent, DummyVecEnv([lambda: gym.make("CartPole-v1")])) is agent
    without = DQN("MlpPolicy", env(), device="cpu", buffer_size=10)
    assert with_masks(without, env()) is without


def test_evaluations_in_training_give_masks_too():
    agent, evaluations = (
        small(env(), num_simulations=2),
        Evaluation(env(), n_eval_episodes=6, eval_freq=10, verbose=0, warn=False),
    )
    agent.set_logger(Logger(None, []))
    agent.learn(10, callback=evaluations)
    assert evaluations.last_mean_reward == 1.0
    assert evaluations.model is agent
