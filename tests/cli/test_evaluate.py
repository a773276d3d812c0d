"""``sb3-mbrl evaluate``."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl.cli import main
from sb3_mbrl.cli.evaluate import with_masks
from tests.algorithms.muzero.agents import small
from tests.cli.commands import train


def test_an_agent_is_not_evaluated_elsewhere(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    assert main(["evaluate", "run", "--env", "MountainCarContinuous-v0"]) == 2
    assert "the agent was not trained in MountainCarContinuous-v0" in capsys.readouterr().err


def test_an_agent_of_a_board_plays_against_random_moves_from_both_seats(here, capsys):
    """Regression: it played both seats itself, without knowing the legal moves; the mean return said nothing."""
    options = ["--env", "TicTacToe-v0", "--steps", "24", "--eval-every", "12", "--eval-episodes", "3", "--no-progress"]
    settings = ["--set", "num_simulations=4", "learning_starts=10", "gradient_steps=1"]
    assert main(["train", "--algo", "muzero", *options, *settings, "--output", "run"]) == 0
    said = capsys.readouterr().out
    assert said.count("Elo rating") == 3, "at the beginning, in the middle and at the end"
    assert "TicTacToe-v0, 3 games from each seat against random moves: " in said
    assert "of 6 (" in said
    assert "illegal" not in said
    assert (here / "run" / "best_model.zip").is_file()


def test_masks_of_one_player_are_given_to_an_agent_that_plans():
    env = DummyVecEnv([lambda: OneLegal()])
    agent = small(env, num_simulations=2)
    assert evaluate_policy(with_masks(agent, env), env, 3)[0] == 1.0
    assert with_masks(agent, DummyVecEnv([lambda: gym.make("CartPole-v1")])) is agent


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
