"""Actions in imagination: every row explores on its own, as the agent does in the real environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

from sb3_mbrl import Dyna, model_based
from sb3_mbrl.imagination.acting import act_in_imagination, explore, sample_actions
from tests.helpers.agents import tiny
from tests.helpers.model_free import quick_settings


def test_generalised_exploration_is_every_rows_own():
    """Regression: with gSDE all imagined rows had the same exploration matrix, at every call."""
    agent = tiny(use_sde=True).learn(60)
    obs = th.zeros(500, 3)
    kept = agent.actor.action_dist.exploration_mat
    first, second = (agent._act_in_imagination(obs) for _ in range(2))
    assert first.std() > 0.01
    assert not th.equal(first, second)
    assert agent.actor.action_dist.exploration_mat is kept


def test_imagination_samples_the_policy_not_its_mean():
    agent = tiny().learn(60)
    obs = th.zeros(500, 3)
    assert agent._act_in_imagination(obs).std() > 0.05


def test_epsilon_greedy_explores_row_by_row():
    """SB3's predict tosses one coin for the whole batch: all rows random, or none."""
    agent = Dyna("MlpPolicy", "CartPole-v1", **quick_settings())
    obs = th.zeros(4_000, 4)
    greedy = int(agent.policy._predict(obs[:1]))
    agent.exploration_rate = 0.3
    actions = act_in_imagination(agent, obs, th.Generator().manual_seed(0))
    assert actions.shape == (4_000, 1)
    assert not actions.is_floating_point()
    # Half of the random ones are the greedy action too: 0.15 +- 4 standard errors.
    assert float((actions != greedy).float().mean()) == pytest.approx(0.15, abs=0.023)
    agent.exploration_rate = 0.0
    assert bool((act_in_imagination(agent, obs, None) == greedy).all())


@pytest.mark.parametrize("wrap", [False, True])
def test_deterministic_actors_get_their_gaussian_noise(wrap):
    noise = NormalActionNoise(np.array([0.1]), np.array([0.2]))
    agent = model_based(TD3)("MlpPolicy", "Pendulum-v1", **quick_settings(), action_noise=noise)
    if wrap:
        agent.action_noise = VectorizedActionNoise(noise, 2)
    obs = th.zeros(4_000, 3)
    difference = act_in_imagination(agent, obs, th.Generator().manual_seed(0)) - agent.policy._predict(obs)
    assert float(difference.mean()) == pytest.approx(0.1, abs=0.013)
    assert float(difference.std()) == pytest.approx(0.2, abs=0.01)
    agent.action_noise = NormalActionNoise(np.zeros(1), np.full(1, 50.0))
    assert float(act_in_imagination(agent, obs, None).abs().max()) == 1.0
    agent.action_noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
    assert th.equal(act_in_imagination(agent, obs, None), agent.policy._predict(obs))


@pytest.mark.parametrize(
    ("space", "members"),
    [
        (gym.spaces.Discrete(3, start=2), {2, 3, 4}),
        (gym.spaces.MultiDiscrete([2, 3]), {0, 1, 2}),
        (gym.spaces.MultiBinary(2), {0, 1}),
    ],
)
def test_random_actions_are_uniform_members(space, members):
    actions = sample_actions(space, 3_000, th.Generator().manual_seed(0), th.device("cpu"))
    assert set(actions.unique().tolist()) == members
    counts = actions[:, 0].bincount()
    counts = counts[counts > 0]
    assert float(counts.max() - counts.min()) / 3_000 < 0.06
    for row in actions[:50]:
        member = int(row) if isinstance(space, gym.spaces.Discrete) else row.numpy().astype(space.dtype)
        assert space.contains(member)


def test_random_box_actions_fill_the_scaled_range():
    actions = sample_actions(gym.spaces.Box(-5, 7, (2, 2)), 4_000, th.Generator().manual_seed(0), th.device("cpu"))
    assert actions.shape == (4_000, 4)
    assert float(actions.min()) == pytest.approx(-1, abs=0.01)
    assert float(actions.max()) == pytest.approx(1, abs=0.01)
    assert float(actions.var()) == pytest.approx(1 / 3, abs=0.02)


def test_exploring_rows_share():
    space, action = gym.spaces.Box(-1, 1, (2,)), th.full((4_000, 2), 2.0)
    mixed = explore(action, 0.25, space, th.Generator().manual_seed(0))
    own = (mixed == 2.0).all(1)
    assert float(own.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert bool((mixed[~own].abs() <= 1).all())
    assert explore(action, 0.0, space, None) is action
