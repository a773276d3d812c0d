"""
Small known optima for DreamerV3 (``make test-slow``): a lake of four fields, a ball to catch, a cue to remember. Each is
learned at the defaults, and training stops as soon as it is reached twice in a row.
"""

import gymnasium as gym
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import DreamerV3

pytestmark = pytest.mark.slow


def learn_until(threshold: float, env_id: str, limit: int, every: int, seed: int = 0, env_kwargs=None, **settings) -> None:
    """
    Train until two evaluations in a row, 50 episodes each, are at or above the threshold.

    :param limit: real steps, after which the test fails
    :param every: real steps between two evaluations
    """
    agent = DreamerV3("MlpPolicy", gym.make(env_id, **env_kwargs or {}), seed=seed, device="cpu", **settings)
    env = gym.make(env_id, **env_kwargs or {})
    curve: list[float] = []
    while agent.num_timesteps < limit:
        agent.learn(every, reset_num_timesteps=False)
        env.reset(seed=1)
        curve.append(float(evaluate_policy(agent, env, 50, warn=False)[0]))
        if len(curve) > 1 and min(curve[-2:]) >= threshold:
            return
    pytest.fail(f"{env_id}: {threshold} was not reached twice in a row within {limit} steps; every {every} steps: {curve}")


def test_a_lake_of_four_fields():
    """Ray's regression test: two steps to the goal, one field to avoid."""
    lake = {"desc": ["SF", "HG"], "is_slippery": False}
    learn_until(1.0, "FrozenLake-v1", 3_000, 500, env_kwargs=lake)


def test_a_ball_is_caught():
    """bsuite's rules, fifty numbers an observation; acting at random earns -0.6."""
    learn_until(0.9, "Catch-v0", 10_000, 1_000)


def test_a_cue_is_remembered():
    """
    For ten steps; a policy that forgets it earns 0.5. The reward depends on cue and action together, so neither alone predicts
    it. There are few latent variables, since each is drawn at every step and the cue has to get through their noise.
    """
    learn_until(0.95, "MemoryCue-v0", 10_000, 500, world_model_kwargs={"stoch": 2, "classes": 4})
