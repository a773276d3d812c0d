"""The planner ``mcts`` in models whose best actions are known."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl import PETS
from sb3_mbrl.contracts import Prediction, UnsupportedSpace
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.models.rssm import RSSM
from sb3_mbrl.models.tabular.model import TabularModel
from sb3_mbrl.planners import MCTS
from sb3_mbrl.planners.policy import PlannerPolicy
from sb3_mbrl.testing.toys import TwoPlayerToy
from tests.planners.problems import CPU, Line, plan, rng

THREE = spaces.Discrete(3)
SMALL = {"num_simulations": 16, "horizon": 3, "rollouts": 2}


def test_it_plans_over_a_barrier():
    """Rewards are places on a line that ends beyond 1: from 0 the best action is to go up, from 1 to stay."""
    model = Line(THREE, edge=1.5)
    result = plan(MCTS(THREE, **SMALL), model, [[0.0], [1.0]], deterministic=True)
    assert result.action.tolist() == [[2], [1]]
    assert result.policy.argmax(1).tolist() == [2, 1]
    assert result.info["diverged"] == 0
    assert result.info["depth"] >= 2


def test_actions_may_begin_at_another_number():
    """``Discrete(3, start=-1)``: the actions are -1, 0 and 1."""
    space = spaces.Discrete(3, start=-1)

    class Shifted(Line):
        def step(self, state, action, **kwargs):
            assert action.min() >= -1
            assert action.max() <= 1
            return super().step(state, action + 1, **kwargs)

    action = plan(MCTS(space, **SMALL), Shifted(space), [[0.0], [0.0]], deterministic=True).action
    assert action.tolist() == [[1], [1]]


@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_two_players_need_no_further_code(search):
    """Nim: from all piles of up to ten stones that can be won, the winning number is taken."""
    model = TwoPlayerToy(spaces.Discrete(11), THREE)
    stones = th.tensor([[n] for n in range(1, 11) if n % 4])
    planner = MCTS(THREE, num_simulations=400, gamma=1.0, search=search)
    result = planner.plan(model, stones, None, is_first=th.ones(len(stones), dtype=th.bool), deterministic=True)
    assert (result.action + 1).tolist() == (stones % 4).tolist()


class Ending(Line):
    """Every step pays 1; action ``a`` ends the episode with the probability ``a / 4``."""

    def step(self, state, action, *, deterministic=False, generator=None):
        return Prediction({"obs": state["obs"] + 1}, th.ones(len(action)), action[:, 0] / 4)


def test_terminations_are_probabilities():
    """The value of an edge is ``1 + gamma (1 - p) V``: with ``V = 10`` known, 1 + 0.9 (1 - a / 4) 10."""
    planner = MCTS(THREE, num_simulations=3, gamma=0.9)
    result = plan(planner, Ending(THREE), [[0.0]], value=lambda state: th.full((len(state["obs"]),), 10.0), deterministic=True)
    assert result.action.tolist() == [[0]]
    # The root's value is the mean of its own and of one visit to each action.
    assert result.value.item() == pytest.approx((10 + 10.0 + 7.75 + 5.5) / 4)


class Opinionated(Line):
    """A model with a policy that prefers action 0, and values of zero; all rewards are zero."""

    def step(self, state, action, *, deterministic=False, generator=None):
        return super().step(state, action)._replace(reward=th.zeros(len(action)))

    def policy_value(self, state):
        rows = len(state["obs"])
        return th.tensor([[2.0, 0.0, 0.0]]).expand(rows, 3), th.zeros(rows)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: Particles(model, 2, "ts1")])
def test_the_models_own_policy_and_value_are_used(wrap):
    model = wrap(Opinionated(THREE))
    result = plan(MCTS(THREE, num_simulations=8), model, [[0.0]], deterministic=True)
    assert result.policy[0].tolist() == pytest.approx(th.tensor([2.0, 0.0, 0.0]).softmax(0).tolist())
    assert result.value.item() == 0


def test_a_prior_policy_acts_in_the_rollouts():
    """The value of staying put forever is that of the place; that of the random policy has other signs."""
    model = Line(THREE)

    def stay(state, generator):
        return th.ones(len(state["obs"]), 1, dtype=th.int64)

    planner = MCTS(THREE, num_simulations=1, horizon=10, rollouts=1, gamma=1.0)
    judge = planner._judge(model, stay, None, rng())
    assert judge({"obs": th.tensor([[2.0], [-1.0]])})[1].tolist() == [20.0, -10.0]


def test_the_value_of_rollouts_is_the_best_or_the_mean():
    """In one step from 0 the actions lead to -1, 0 and 1, which are the returns: at best 1, on average 0."""
    values = {}
    for estimate in ("best", "mean"):
        planner = MCTS(THREE, horizon=1, rollouts=300, estimate=estimate)
        judge = planner._judge(Line(THREE), None, None, rng())
        values[estimate] = judge({"obs": th.tensor([[0.0]])})[1].item()
    assert values["best"] == 1
    assert values["mean"] == pytest.approx(0, abs=0.15)
    with pytest.raises(ValueError, match="estimate='median': choose 'best' or 'mean'"):
        MCTS(THREE, estimate="median")


def test_a_prediction_that_is_not_finite_never_wins():
    """Going up from 0 leads where rewards are not numbers: the planner stays below, where rewards are 0 or negative."""
    model = Line(THREE, break_at=0.5)
    result = plan(MCTS(THREE, num_simulations=24, horizon=2, rollouts=4), model, [[0.0], [-3.0]], deterministic=True)
    assert result.action[0].item() != 2
    assert result.info["diverged"] > 0
    assert result.value.isfinite().all()


def test_masks_hold_and_are_checked():
    mask = th.tensor([[True, True, False]])
    planner = MCTS(THREE, **SMALL)
    assert plan(planner, Line(THREE), [[0.0]], action_mask=mask, deterministic=True).action.item() == 1
    with pytest.raises(ValueError, match="action_mask has the shape"):
        plan(planner, Line(THREE), [[0.0]], action_mask=mask[:, :2])


def test_box_actions_are_refused():
    with pytest.raises(UnsupportedSpace, match="needs Discrete actions"):
        MCTS(spaces.Box(-1, 1, (1,)))


def test_it_finds_the_way_in_a_table():
    """A corridor of five places, with a reward of 1 for leaving it to the right."""
    model = TabularModel(spaces.Discrete(5), spaces.Discrete(2), device=CPU)
    for place in range(5):
        model.record(place, 0, 0.0, max(place - 1, 0), False)
        model.record(place, 1, float(place == 4), min(place + 1, 4), place == 4)
    policy = PlannerPolicy(MCTS(model.action_space, num_simulations=60), model, seed=0)
    action, _ = policy.predict(np.arange(5), deterministic=True)
    assert action.tolist() == [1] * 5


def test_it_plans_in_a_recurrent_model():
    model = RSSM(spaces.Box(-1, 1, (2,)), THREE, device=CPU, deter=8, hidden=8, units=8, stoch=2, classes=2)
    model.fitted = True
    policy = PlannerPolicy(MCTS(THREE, **SMALL), model, seed=0)
    action, state = policy.predict(np.zeros((2, 2), np.float32), deterministic=True)
    again, _ = policy.predict(np.zeros((2, 2), np.float32), state=state, deterministic=True)
    assert action.shape == again.shape == (2,)


def test_pets_plans_by_search():
    agent = PETS(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=40,
        fit_freq=40,
        seed=0,
        device="cpu",
        n_particles=2,
        world_model_kwargs={"members": 2, "elites": 2, "hidden": [16]},
        fit_kwargs={"max_batches": 20},
        planner="mcts",
        planner_kwargs=SMALL,
    ).learn(60)
    assert isinstance(agent.planner, MCTS)
    env = gym.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    actions = [agent.predict(obs, deterministic=True)[0] for _ in range(2)]
    assert actions[0] == actions[1]
    assert agent.predict(obs, deterministic=True, action_masks=np.array([[True, False]]))[0] == 0


@pytest.mark.parametrize("wrong", [{"num_simulations": 10**9}, {"horizon": 10**9}, {"rollouts": 10**9}], ids=str)
def test_searches_that_fill_the_memory_are_refused_at_construction(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}=1000000000.*: give at most 1000000"):
        MCTS(spaces.Discrete(3), **wrong)
