"""Imagined transitions with hindsight experience replay. Regression: models do not know the rewards of relabelled goals."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_mbrl import Dyna
from sb3_mbrl.buffers.her import goal_starts, towards_goals
from sb3_mbrl.contracts import Imagined

HER = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 60, "buffer_size": 1000, "seed": 0, "device": "cpu"}


def bits():
    return make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=False), 2)


@pytest.fixture(scope="module")
def buffer():
    return DQN("MultiInputPolicy", bits(), **HER).learn(200).replay_buffer


def test_starts_have_the_goals_that_the_buffer_trains_with(buffer):
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    starts = goal_starts(buffer, 300, th.Generator().manual_seed(0))
    assert np.array_equal(np.random.get_state()[1], state), "SB3's own stream was drawn from"
    assert starts["desired_goal"].shape == (300, 4)
    # The environment's own goal is all ones; four of five are relabelled.
    assert 0.5 < float((starts["desired_goal"] != 1).any(1).float().mean()) < 0.9
    again = goal_starts(buffer, 300, th.Generator().manual_seed(0))
    assert th.equal(again["desired_goal"], starts["desired_goal"])


def test_goals_stay_and_rewards_are_the_environments(buffer):
    generator = th.Generator().manual_seed(0)
    obs, next_obs = (
        {key: th.randint(2, (3, 50, 4), generator=generator, dtype=th.int8) for key in buffer.observations} for _ in range(2)
    )
    nothing = th.zeros(3, 50)
    imagined = Imagined(obs, nothing[..., None], next_obs, nothing - 7, nothing, None, nothing == 0)
    relabelled = towards_goals(imagined, buffer)
    goal = obs["desired_goal"][0]
    for step in range(3):
        assert th.equal(relabelled.obs["desired_goal"][step], goal)
        assert th.equal(relabelled.next_obs["desired_goal"][step], goal)
        reached = (next_obs["achieved_goal"][step] == goal).all(1)
        assert th.equal(relabelled.reward[step], reached.float() - 1)
    assert th.equal(relabelled.obs["observation"], obs["observation"])
    buffer.copy_info_dict = True
    try:
        assert th.equal(towards_goals(imagined, buffer).reward, imagined.reward)
    finally:
        buffer.copy_info_dict = False


def imagined_rows(**more):
    """Draw the imagined rows of an agent that has trained for a while."""
    agent = Dyna(
        "MultiInputPolicy",
        bits(),
        world_model_kwargs={"members": 2, "elites": 2, "hidden": [64], "learning_rate": 0.01},
        fit_kwargs={"max_batches": 500},
        **HER,
        **more,
    ).learn(260)
    return agent.imagined.draw(500, th.Generator().manual_seed(0))


def test_goals_whose_rewards_are_not_known_are_not_relabelled():
    """Regression: with ``copy_info_dict`` the model's rewards, of goals never reached, stood beside HER's own."""
    goals = imagined_rows(replay_buffer_kwargs={"copy_info_dict": True})["obs"]["desired_goal"]
    assert bool((goals == 1).all())


def test_rollouts_of_an_agent_have_relabelled_goals():
    rows = imagined_rows()
    goals = rows["obs"]["desired_goal"]
    assert bool((goals != 1).any(1).any())
    assert th.equal(goals, rows["next_obs"]["desired_goal"])
    reached = (rows["next_obs"]["achieved_goal"] == goals).all(1)
    assert bool(reached.any())
    assert th.equal(rows["reward"], reached.float() - 1)
