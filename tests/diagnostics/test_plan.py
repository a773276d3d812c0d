"""Plans against what happens: with the exact model they are the same."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ
from sb3_mbrl.contracts import MissingCapability, Plan
from sb3_mbrl.diagnostics.plan import PlanRollouts, Rollouts, coverage, roll_out_plans, sample_rollouts
from sb3_mbrl.planners import RandomShooting
from sb3_mbrl.testing import LinearToy
from tests.diagnostics.agents import PLANNER, planning


def test_a_plan_that_is_carried_out_comes_true_with_the_exact_model(pendulum):
    plans = roll_out_plans(planning(), pendulum, particles=3, moments=3, seed=1)
    assert [one.step for one in plans] == [0, 8, 16]
    for one in plans:
        assert one.imagined.obs.shape == (3, 9, 3)
        np.testing.assert_allclose(one.imagined.obs, np.broadcast_to(one.obs, (3, 9, 3)), atol=1e-4)
        np.testing.assert_allclose(one.imagined.reward, np.broadcast_to(one.reward, (3, 8)), atol=1e-3)
        assert one.value == pytest.approx(one.reward.sum(), abs=1e-2)


def test_moments_between_the_ends_of_plans_are_those_asked_for(pendulum):
    plans = roll_out_plans(planning(), pendulum, particles=2, moments=4, every=3, horizon=5, seed=1)
    assert [one.step for one in plans] == [0, 3, 6, 9]
    # At step 3 a new plan begins, so of the first one three steps came true.
    np.testing.assert_allclose(plans[0].imagined.obs[0, :4], plans[0].obs[:4], atol=1e-4)
    assert all(len(one.reward) == 5 for one in plans)


def test_with_replanning_only_the_first_step_has_to_come_true(pendulum):
    one = roll_out_plans(planning(), pendulum, particles=2, moments=1, replan=True, seed=1)[0]
    np.testing.assert_allclose(one.imagined.obs[:, 1], np.broadcast_to(one.obs[1], (2, 3)), atol=1e-4)
    assert np.abs(one.imagined.obs[0] - one.obs).max() > 1e-2


def test_replanning_acts_as_evaluation_does(pendulum):
    """Recording plans does not change the agent: the actions are those of ``predict`` with the same random stream."""
    rewards = roll_out_plans(planning(), pendulum, particles=2, moments=2, replan=True, seed=3)
    agent, state, start = planning(), None, np.array([True])
    obs, _ = pendulum.reset(seed=3)
    for reward in np.concatenate([one.reward for one in rewards]):
        action, state = agent.predict(obs, state, start, deterministic=True)
        obs, real, *_ = pendulum.step(action)
        start = np.array([False])
        assert float(real) == reward


@pytest.mark.parametrize(("cls", "env_id", "model"), [(MBPO, "Pendulum-v1", "pendulum"), (Dyna, "CartPole-v1", "cartpole")])
def test_a_policy_in_the_exact_model_does_what_it_does_in_reality(cls, env_id, model):
    agent = cls("MlpPolicy", env_id, world_model=model, seed=0)
    with gym.make(env_id) as env:
        plans = roll_out_plans(agent, env, particles=2, moments=2, horizon=6, seed=0)
    for one in plans:
        steps = len(one.reward)
        for rollout in one.imagined.obs:
            np.testing.assert_allclose(rollout[: steps + 1], one.obs, atol=1e-3)
        np.testing.assert_allclose(one.imagined.reward[0, :steps], one.reward, atol=1e-3)


@pytest.mark.parametrize(("cls", "policy"), [(DynaQ, "QTablePolicy"), (Dyna, "MlpPolicy")])
def test_discrete_observations(cls, policy):
    """A maze has one outcome for every step, which a table has seen."""
    agent = cls(policy, "DynaMaze-v0", learning_starts=50, world_model="tabular", seed=0).learn(300)
    with gym.make("DynaMaze-v0") as env:
        one = roll_out_plans(agent, env, particles=2, moments=1, horizon=3, seed=0)[0]
    assert one.obs.shape == (4, 54)
    assert (one.obs.sum(1) == 1).all()
    np.testing.assert_array_equal(one.imagined.obs[:, 0], np.broadcast_to(one.obs[0], (2, 54)))


def test_what_follows_the_end_of_an_episode_is_not_shown():
    agent = Dyna("MlpPolicy", "CartPole-v1", world_model="cartpole", seed=0)
    with gym.make("CartPole-v1") as env:
        one = roll_out_plans(agent, env, particles=2, moments=1, horizon=60, seed=0)[0]
    steps = len(one.reward)
    assert 5 < steps < 60  # nobody has trained it
    assert np.isfinite(one.imagined.obs[:, : steps + 1]).all()
    assert np.isnan(one.imagined.obs[:, steps + 1 :]).all()
    assert np.isnan(one.imagined.reward[:, steps:]).all()
    assert np.isfinite(one.imagined.reward[:, :steps]).all()


def test_members_are_dealt_out_evenly_and_kept(pendulum):
    """Six rollouts of three members without noise: three different ones, each twice."""
    agent = PETS(
        "MlpPolicy",
        pendulum,
        world_model_kwargs={"members": 3, "elites": 3, "hidden": [8], "probabilistic": False},
        planner="random",
        planner_kwargs=PLANNER,
        learning_starts=50,
        fit_kwargs={"max_batches": 5},
        seed=0,
    ).learn(60)
    imagined = roll_out_plans(agent, pendulum, particles=6, moments=1, seed=0)[0].imagined.obs
    np.testing.assert_array_equal(imagined[:3], imagined[3:])
    assert len({tuple(rollout[1]) for rollout in imagined}) == 3


def test_a_rollout_that_diverges_is_not_shown(generator):
    class Diverges(LinearToy):
        def step(self, state, action, *, deterministic=False, generator=None):
            prediction = super().step(state, action, deterministic=deterministic, generator=generator)
            return prediction._replace(state=th.full_like(prediction.state, float("inf")))

    box = spaces.Box(-10, 10, (2,))
    model = Diverges(box, spaces.Box(-1, 1, (2,)), device="cpu")
    fan = sample_rollouts(model, model.initial(th.zeros(1, 2)), lambda _, state: th.zeros(len(state), 2), 3, 4, generator)
    assert np.isfinite(fan.obs[:, 0]).all()
    assert not np.isinf(fan.obs).any()


def moment(rollouts, truth):
    rollouts, truth = np.asarray(rollouts, float), np.asarray(truth, float)
    return PlanRollouts(
        0, Rollouts(rollouts, np.zeros((*rollouts.shape[:1], rollouts.shape[1] - 1))), truth, truth[1:, 0], None
    )


def test_coverage_of_two_columns_by_hand():
    rollouts = np.broadcast_to(np.linspace(0, 1, 101)[:, None, None], (101, 3, 2))
    # The band is 0.05 to 0.95. The first column: in, out; the second: in, in.
    plans = [moment(rollouts, [[0.5, 0.5], [0.06, 0.94], [0.96, 0.5]])]
    np.testing.assert_allclose(coverage(plans), [0.5, 1.0])
    # Steps after the end of the real episode do not count, nor those that no rollout reached.
    ended = rollouts.copy()
    ended[:, 2] = np.nan
    np.testing.assert_allclose(coverage([moment(ended, [[0.5, 0.5], [0.06, 0.94], [0.96, 0.5]])]), [1.0, 1.0])
    np.testing.assert_allclose(coverage([moment(rollouts, [[0.5, 0.5], [0.06, 0.96]])]), [1.0, 0.0])


def test_rounding_does_not_leave_a_band_without_width():
    """All rollouts of an exact model are alike. Regression: 37 % counted as covered."""
    truth = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    rollouts = np.broadcast_to(truth + np.array([1e-5, 0.0]), (20, 3, 2))
    np.testing.assert_allclose(coverage([moment(rollouts, truth)]), [1.0, 1.0])
    np.testing.assert_allclose(coverage([moment(rollouts + 0.01, truth)]), [0.0, 0.0])


@pytest.mark.parametrize("wrong", [{"horizon": 0}, {"horizon": 2.5}, {"particles": 0}, {"moments": 0}, {"every": -1}])
def test_numbers_below_one(wrong, pendulum):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*give a whole number from 1 on"):
        roll_out_plans(planning(), pendulum, **wrong)


def test_a_vec_env_is_refused():
    with pytest.raises(TypeError, match="one environment of Gymnasium, not in a VecEnv"):
        roll_out_plans(planning(), make_vec_env("Pendulum-v1"))


def test_a_horizon_beyond_the_plan(pendulum):
    with pytest.raises(ValueError, match="horizon=9: the plans of RandomShooting are 8 steps long"):
        roll_out_plans(planning(), pendulum, horizon=9)


def test_agents_that_expect_nothing(pendulum):
    with pytest.raises(ValueError, match="SAC has no world model"):
        roll_out_plans(SAC("MlpPolicy", pendulum), pendulum)
    with pytest.raises(ValueError, match="has not been fitted yet"):
        roll_out_plans(planning(world_model="auto"), pendulum)


def test_a_planner_without_a_sequence(pendulum):
    class Silent(RandomShooting):
        def plan(self, *args, **kwargs):
            planned: Plan = super().plan(*args, **kwargs)
            return planned._replace(sequence=None)

    agent = PETS("MlpPolicy", pendulum, world_model="pendulum", planner=Silent, planner_kwargs=PLANNER)
    with pytest.raises(MissingCapability, match="Silent does not plan a sequence"):
        roll_out_plans(agent, pendulum)
