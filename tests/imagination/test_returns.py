"""Returns of several imagined steps, against hand-made ones and against SB3's own."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_mbrl import Dyna
from sb3_mbrl.contracts import Imagined
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.returns import multi_step
from sb3_mbrl.testing import LinearToy

GAMMA = 0.9


def rollout(reward, terminated, valid=None, discount=None) -> Imagined:
    """Of one start; the observation is the number of the step."""
    reward = th.tensor(reward)[:, None]
    steps = th.arange(len(reward), dtype=th.float32)[:, None, None]
    terminated = th.tensor(terminated)[:, None].float()
    valid = th.ones(reward.shape, dtype=th.bool) if valid is None else th.tensor(valid)[:, None]
    discount = None if discount is None else th.tensor(discount)[:, None]
    return Imagined(steps, steps.clone(), steps + 1, reward, terminated, discount, valid)


def test_rewards_are_summed_up_to_the_end_of_the_rollout():
    found = multi_step(rollout([1.0, 2.0, 4.0], [0, 0, 0]), 2, GAMMA)
    assert found.reward[:, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2 + 0.9 * 4, 4])
    assert found.discount[:, 0].tolist() == pytest.approx([0.81, 0.81, 0.9])
    assert found.next_obs[:, 0, 0].tolist() == [2, 3, 3]
    assert found.obs[:, 0, 0].tolist() == [0, 1, 2]


def test_an_end_within_is_the_end():
    found = multi_step(rollout([1.0, 2.0, 4.0], [0, 1, 0], [True, True, False]), 3, GAMMA)
    assert found.reward[:2, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2])
    assert found.discount[:2, 0].tolist() == [0, 0]
    assert found.terminated[:2, 0].tolist() == [1, 1]


def test_what_is_not_finite_later_is_left_out():
    found = multi_step(rollout([1.0, 2.0, float("nan")], [0, 0, 0], [True, True, False]), 3, GAMMA)
    assert found.reward[:2, 0].tolist() == pytest.approx([1 + 0.9 * 2, 2])
    assert found.next_obs[:2, 0, 0].tolist() == [2, 2]


def test_the_models_own_discounts_are_multiplied():
    found = multi_step(rollout([1.0, 2.0, 4.0], [0, 0, 0], discount=[0.5, 0.25, 0.1]), 3, GAMMA)
    assert found.reward[0, 0] == pytest.approx(1 + 0.5 * 2 + 0.125 * 4)
    assert found.discount[0, 0] == pytest.approx(0.5 * 0.25 * 0.1)


def test_one_step_is_what_it_was():
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


def test_with_several_steps_only_the_first_explores(generator):
    model = LinearToy(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), device="cpu")
    start = model.initial(th.zeros(30, 3))
    for n_steps, explored in ((1, [True, True, True]), (3, [True, False, False])):
        rollouts = BranchedRollouts(horizon=3, exploration=1.0, n_steps=n_steps)
        imagined = rollouts.imagine(model, start, lambda obs: th.full((len(obs), 2), 0.5), 3, generator=generator)
        assert [bool((action != 0.5).any()) for action in imagined.action] == explored


def test_ends_are_counted_once_whether_the_model_gives_a_discount_or_not(generator):
    """Regression: a model's own discount has its share of ends in it, and ends were drawn besides."""
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
        found = multi_step(imagined, 2, GAMMA)
        assert float(found.reward[0].mean()) == pytest.approx(1 + (1 - p) * GAMMA, abs=0.01)
        assert float(found.discount[0].mean()) == pytest.approx(((1 - p) * GAMMA) ** 2, abs=0.01)


def test_dyna_learns_from_them():
    """A batch has the real rows' discount and the imagined ones'."""
    agent = Dyna(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=100,
        world_model="cartpole",
        imagination_kwargs={"horizon": 5, "n_steps": 5, "starts_per_step": 4, "freq": 20, "max_age": 100},
        seed=0,
        device="cpu",
    ).learn(200)
    rows = agent.imagined.draw(500, th.Generator().manual_seed(0))
    powers = {round(agent.gamma**n, 4) for n in range(1, 6)}
    assert {round(float(value), 4) for value in rows["discount"]} - {0.0} == powers
    ended = rows["discount"] == 0
    sums = {round(sum(0.99**k for k in range(n)), 3) for n in range(1, 6)}
    assert {round(float(value), 3) for value in rows["reward"][ended]} <= sums
    assert bool(ended.any())
