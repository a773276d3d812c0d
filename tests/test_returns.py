"""Returns of several steps against the definition, hand-made ones and SB3's own."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_mbrl.contracts import Imagined
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.returns import ReturnScale, lambda_returns, multi_step
from sb3_mbrl.testing import LinearToy

GAMMA = 0.9


def rollout(reward, terminated, valid=None, discount=None) -> Imagined:
    """A rollout from one start; the observation is the number of the step."""
    reward = th.tensor(reward)[:, None]
    steps = th.arange(len(reward), dtype=th.float32)[:, None, None]
    terminated = th.tensor(terminated)[:, None].float()
    valid = th.ones(reward.shape, dtype=th.bool) if valid is None else th.tensor(valid)[:, None]
    discount = None if discount is None else th.tensor(discount)[:, None]
    return Imagined(steps, steps.clone(), steps + 1, reward, terminated, discount, valid)


def test_rewards_are_summed_up_to_the_end_of_the_rollout():
    joined = multi_step(rollout([1.0, 2.0, 4.0], [0, 0, 0]), 2, GAMMA)
    assert joined.reward[:, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2 + 0.9 * 4, 4])
    assert joined.discount[:, 0].tolist() == pytest.approx([0.81, 0.81, 0.9])
    assert joined.next_obs[:, 0, 0].tolist() == [2, 3, 3]
    assert joined.obs[:, 0, 0].tolist() == [0, 1, 2]


def test_a_termination_within_the_steps_ends_the_return():
    joined = multi_step(rollout([1.0, 2.0, 4.0], [0, 1, 0], [True, True, False]), 3, GAMMA)
    assert joined.reward[:2, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2])
    assert joined.discount[:2, 0].tolist() == [0, 0]
    assert joined.terminated[:2, 0].tolist() == [1, 1]


def test_later_steps_that_are_not_finite_are_left_out():
    joined = multi_step(rollout([1.0, 2.0, float("nan")], [0, 0, 0], [True, True, False]), 3, GAMMA)
    assert joined.reward[:2, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2])
    assert joined.next_obs[:2, 0, 0].tolist() == [2, 2]


def test_the_models_own_discounts_are_multiplied():
    joined = multi_step(rollout([1.0, 2.0, 4.0], [0, 0, 0], discount=[0.5, 0.25, 0.1]), 3, GAMMA)
    assert joined.reward[0, 0] == pytest.approx(1 + 0.5 * 2 + 0.125 * 4)
    assert joined.discount[0, 0] == pytest.approx(0.5 * 0.25 * 0.1)


def test_one_step_is_unchanged():
    imagined = rollout([1.0, 2.0], [0, 1])
    assert multi_step(imagined, 1, GAMMA) is imagined


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(2, 6), st.integers(0, 2**31))
def test_as_sb3_does_it_with_real_steps(ends, n_steps, seed):
    rewards = np.random.default_rng(seed).normal(size=len(ends)).astype(np.float32)
    buffer = NStepReplayBuffer(
        len(ends) + 1, spaces.Box(-99, 99, (1,)), spaces.Box(-1, 1, (1,)), device="cpu", n_steps=n_steps, gamma=GAMMA
    )
    for step, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        place = np.full((1, 1), step, np.float32)
        buffer.add(place, place + 1, np.zeros((1, 1)), np.array([reward]), np.array([end]), [{}])
    theirs = buffer._get_samples(np.arange(len(ends)))
    ours = multi_step(rollout(rewards, ends), n_steps, GAMMA)
    np.testing.assert_allclose(ours.reward, theirs.rewards, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.next_obs[:, 0], theirs.next_observations)
    np.testing.assert_allclose(ours.discount, (1 - theirs.dones) * theirs.discounts, rtol=1e-5)


def test_terminations_count_once_with_and_without_a_discount_of_the_model(generator):
    """Regression: a model's discount includes its terminations, and these were drawn on top of it."""
    p, n = 0.5, 200_000

    class Discounting(LinearToy):
        def step(self, state, action, *, deterministic=False, generator=None):
            ends = th.full((len(action),), p)
            return (
                super().step(state, action)._replace(reward=th.ones(len(action)), terminated=ends, discount=GAMMA * (1 - ends))
            )

    class Plain(Discounting):
        def step(self, state, action, *, deterministic=False, generator=None):
            return super().step(state, action)._replace(discount=None)

    for cls in (Discounting, Plain):
        model = cls(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), device="cpu")
        rollouts = BranchedRollouts(horizon=2, n_steps=2)
        imagined = rollouts.imagine(
            model, model.initial(th.zeros(n, 3)), lambda obs: th.zeros(len(obs), 2), 2, generator=generator
        )
        joined = multi_step(imagined, 2, GAMMA)
        assert float(joined.reward[0].mean()) == pytest.approx(1 + (1 - p) * GAMMA, abs=0.01)
        assert float(joined.discount[0].mean()) == pytest.approx(((1 - p) * GAMMA) ** 2, abs=0.01)


def mixture(reward, discount, value, lam):
    """Mix n-step returns by definition: with the weights ``(1 - lam) lam^(n - 1)``, the longest with the rest."""
    last = len(reward) - 1
    returns = []
    for t in range(last):
        total, weight, weights, n_step = 0.0, 1.0, [], []
        for n in range(1, last - t + 1):
            total += weight * reward[t + n]
            weight *= discount[t + n]
            n_step.append(total + weight * value[t + n])
            weights.append((1 - lam) * lam ** (n - 1) if t + n < last else lam ** (n - 1))
        returns.append(np.dot(weights, n_step))
    return returns


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_lambda_returns_are_mixtures_of_n_step_returns(lam):
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 3, 7))
    discount = rng.uniform(0.9, 1.0, (3, 7))
    discount[1, 4] = 0.0  # an episode ends
    got = lambda_returns(*(th.tensor(x) for x in (reward, discount, value)), lam)
    assert got.shape == (3, 6)
    np.testing.assert_allclose(got, [mixture(*row, lam) for row in zip(reward, discount, value, strict=True)], atol=1e-12)


def test_rewards_after_a_termination_do_not_count():
    reward, value = th.ones(1, 5), th.full((1, 5), 100.0)
    discount = th.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]])
    assert lambda_returns(reward, discount, value, 1.0)[0, :2].tolist() == [2.0, 1.0]


def test_the_scale_of_returns_by_hand():
    scale, returns = ReturnScale(rate=0.5), th.linspace(0.0, 100.0, 101)
    assert float(scale()) == 1.0
    scale.update(returns)
    assert float(scale()) == pytest.approx(45.0)  # half of 90
    scale.update(returns)
    assert float(scale()) == pytest.approx(67.5)
    small = ReturnScale(rate=1.0)
    small.update(0.001 * returns)
    assert float(small()) == 1.0
    again = ReturnScale(rate=0.5)
    again.load_state_dict(scale.state_dict())
    assert float(again()) == float(scale())
