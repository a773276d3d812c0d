"""Rollouts in models whose every step is known."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MissingCapability
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.testing import LinearToy, RecurrentToy, TwoPlayerToy

OBS = spaces.Box(-np.inf, np.inf, (3,))
ACTION = spaces.Box(-1, 1, (2,))


def toy(cls=LinearToy, **kwargs):
    return cls(OBS, ACTION, device="cpu", **kwargs)


def by_obs(obs: th.Tensor) -> th.Tensor:
    """Act by the observation."""
    return th.stack([obs.sum(1).tanh(), -obs[:, 0].tanh()], 1)


def starts(n=50):
    return th.randn(n, 3, generator=th.Generator().manual_seed(1))


def test_every_step_follows_the_model_and_the_policy(generator):
    model, first = toy(), starts()
    imagined = BranchedRollouts().imagine(model, model.initial(first), by_obs, 4, generator=generator)
    assert imagined.obs.shape == imagined.next_obs.shape == (4, 50, 3)
    assert imagined.action.shape == (4, 50, 2)
    assert imagined.valid.all()
    assert imagined.discount is None
    x = first
    for t in range(4):
        th.testing.assert_close(imagined.obs[t], x)
        th.testing.assert_close(imagined.action[t], by_obs(x))
        x = 0.9 * x + by_obs(x) @ model.transition.T
        th.testing.assert_close(imagined.next_obs[t], x)
        th.testing.assert_close(imagined.reward[t], x.sum(1))
    assert imagined.terminated.sum() == 0
    assert imagined.info["reward"] == pytest.approx(float(imagined.reward.mean()), rel=1e-5)
    assert imagined.info["terminated"] == imagined.info["dropped"] == 0.0


def test_termination_is_drawn_from_its_probability(generator):
    n, p = 40_000, 0.3
    model = toy(termination_fn=lambda obs, action, next_obs: th.full((len(obs),), p))
    imagined = BranchedRollouts().imagine(model, model.initial(starts(n)), by_obs, 5, generator=generator)
    running = imagined.valid.sum(1)
    # A binomial with 5 deviations of room; row t runs with probability 0.7^t.
    for t in range(5):
        expected = n * (1 - p) ** t
        assert abs(int(running[t]) - expected) <= 5 * (expected * (1 - (1 - p) ** t)) ** 0.5 + 1e-6
    ended = imagined.terminated.bool()
    assert not (ended & ~imagined.valid).any()
    # A rollout runs exactly as long as it has not terminated.
    assert th.equal(imagined.valid[1:], imagined.valid[:-1] & ~ended[:-1])
    assert imagined.info["terminated"] == pytest.approx(float(ended.sum() / imagined.valid.sum()))
    assert imagined.info["terminated"] == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize(("p", "rows"), [(0.0, 30), (1.0, 10)])
def test_certain_terminations_are_certain(p, rows, generator):
    model = toy(termination_fn=lambda obs, action, next_obs: th.full((len(obs),), p))
    imagined = BranchedRollouts().imagine(model, model.initial(starts(10)), by_obs, 3, generator=generator)
    assert int(imagined.valid.sum()) == rows


class Breaking(LinearToy):
    """A model that is not finite where the first column exceeds a threshold, and refuses to decode such states."""

    def __init__(self, *args, where="state", **kwargs):
        super().__init__(*args, **kwargs)
        self.where = where

    def step(self, state, action, **kwargs):
        assert state.isfinite().all()
        assert action.isfinite().all()
        p = super().step(state, action, **kwargs)
        bad = p.state[:, 0] > 1
        if self.where == "state":
            return p._replace(state=p.state.masked_fill(bad[:, None], float("nan")))
        if self.where == "discount":
            return p._replace(discount=th.where(bad, float("inf"), 0.9))
        if self.where == "decode":
            return p
        return p._replace(**{self.where: getattr(p, self.where).masked_fill(bad, float("inf"))})

    def decode(self, state):
        obs = super().decode(state)
        return obs.masked_fill(obs[:, :1] > 1, float("nan")) if self.where == "decode" else obs


@pytest.mark.parametrize("where", ["state", "reward", "terminated", "discount", "decode"])
def test_rows_that_are_not_finite_are_masked_counted_and_shown_to_nobody(where, generator):
    model, first = toy(Breaking, where=where), starts().clamp(max=0.9)

    def act(obs):
        assert obs.isfinite().all()
        return by_obs(obs)

    imagined = BranchedRollouts().imagine(model, model.initial(first), act, 6, generator=generator)
    exact = BranchedRollouts().imagine(toy(), first, by_obs, 6)
    fine = (exact.next_obs[:, :, 0] <= 1).cummin(0).values
    assert 0 < int((~fine).sum()) < 300
    assert th.equal(imagined.valid, fine)
    for name in ("obs", "action", "next_obs", "reward"):
        th.testing.assert_close(getattr(imagined, name)[fine], getattr(exact, name)[fine])
    broken = 50 - int(fine[-1].sum())
    assert imagined.info["dropped"] == pytest.approx(broken / (int(fine.sum()) + broken))
    assert np.isfinite(imagined.info["reward"])


def test_starts_that_are_not_finite_are_masked_and_counted(generator):
    first = starts(10)
    first[3, 1] = float("nan")
    first[7, 0] = float("inf")
    model = toy(Breaking, where="discount")

    def act(obs):
        assert obs.isfinite().all()
        return -th.ones(len(obs), 2)

    imagined = BranchedRollouts().imagine(model, first, act, 2, generator=generator)
    assert set(imagined.valid.all(0).logical_not().nonzero().flatten().tolist()) >= {3, 7}
    assert not imagined.valid[:, [3, 7]].any()
    assert imagined.info["dropped"] >= 2 / 20
    assert imagined.next_obs.isfinite().all()


def test_the_generator_alone_decides():
    model = toy(noise=0.5, termination_fn=lambda obs, action, next_obs: th.full((len(obs),), 0.2))

    def run(seed):
        return BranchedRollouts().imagine(model, starts(), by_obs, 3, generator=th.Generator().manual_seed(seed))

    before = th.get_rng_state()
    one, same, other = run(0), run(0), run(1)
    assert th.equal(th.get_rng_state(), before)
    for name in ("obs", "action", "next_obs", "reward", "terminated", "valid"):
        assert th.equal(getattr(one, name), getattr(same, name))
    assert not th.equal(one.next_obs, other.next_obs)
    assert not th.equal(one.valid, other.valid)


def test_latent_rollouts_show_features():
    th.manual_seed(0)
    model = toy(RecurrentToy, hidden=8)
    state, seen = model.initial(starts(5)), []

    def act(features):
        seen.append(features)
        return features[:, :2].tanh()

    imagined = BranchedRollouts(observation="features").imagine(model, state, act, 3)
    assert imagined.obs.shape == (3, 5, 11)  # 8 of the belief, 3 of the observation
    assert imagined.valid.sum() >= 8
    for t in range(3):
        valid = imagined.valid[t]
        th.testing.assert_close(imagined.obs[t], seen[t])
        th.testing.assert_close(imagined.obs[t][valid], model.features(state)[valid])
        state = model.step(state, seen[t][:, :2].tanh()).state
        th.testing.assert_close(imagined.next_obs[t][valid], model.features(state)[valid])
    assert not imagined.obs.requires_grad


def test_a_model_without_decode_says_so():
    model = toy(RecurrentToy)
    with pytest.raises(MissingCapability, match="RecurrentToy does not decode observations"):
        BranchedRollouts().imagine(model, model.initial(starts(2)), by_obs, 1)


def test_discounts_are_kept(generator):
    model = TwoPlayerToy(spaces.Discrete(11), spaces.Discrete(2), gamma=0.9, device="cpu")
    state = model.initial(th.tensor([[3], [10]]))
    imagined = BranchedRollouts().imagine(
        model, state, lambda obs: th.zeros(len(obs), 1, dtype=th.long), 4, generator=generator
    )
    # One stone at a time: the pile of three is gone after three steps.
    assert imagined.valid.T.tolist() == [[True, True, True, False], [True] * 4]
    assert imagined.obs[:, 1, 0].tolist() == [10, 9, 8, 7]
    assert imagined.terminated[:, 0].tolist() == [0, 0, 1, 0]
    th.testing.assert_close(imagined.discount[:3, 0], th.tensor([-0.9, -0.9, 0.0]))
    th.testing.assert_close(imagined.discount[:, 1], th.full((4,), -0.9))


def test_no_gradient_is_recorded():
    model = toy()
    model.transition.requires_grad_()
    imagined = BranchedRollouts().imagine(model, starts(), by_obs, 2)
    assert not imagined.next_obs.requires_grad


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"freq": 0}, "freq=0: give a whole number from 1 on"),
        ({"max_age": 0}, "max_age=0: give a whole number from 1 on"),
        ({"starts_per_step": 0}, "starts_per_step=0: give a number above 0"),
        ({"freq": 100, "max_age": 99}, "max_age=99 is shorter than freq=100"),
        ({"starts": "newest"}, "starts='newest': choose one of 'uniform', 'recent', 'initial', or give a function"),
        ({"observation": "pixels"}, "observation='pixels': choose 'decoded' or 'features'"),
        ({"horizon": 0}, "horizons must be at least 1"),
    ],
)
def test_wrong_options_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        BranchedRollouts(**wrong)


def test_branched_rollouts_explore():
    model = LinearToy(gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Box(-1, 1, (1,)), device="cpu")
    rollouts = BranchedRollouts(horizon=2, exploration=0.5)
    imagined = rollouts.imagine(
        model, th.zeros(2_000, 2), lambda obs: th.full((len(obs), 1), 0.5), 2, generator=th.Generator()
    )
    own = (imagined.action == 0.5).float().mean()
    assert float(own) == pytest.approx(0.5, abs=0.04)
    with pytest.raises(ValueError, match=r"exploration=2: give a number from 0 up to 1"):
        BranchedRollouts(exploration=2)


def test_with_several_steps_only_the_first_explores(generator):
    model = LinearToy(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), device="cpu")
    start = model.initial(th.zeros(30, 3))
    for n_steps, explored in ((1, [True, True, True]), (3, [True, False, False])):
        rollouts = BranchedRollouts(horizon=3, exploration=1.0, n_steps=n_steps)
        imagined = rollouts.imagine(model, start, lambda obs: th.full((len(obs), 2), 0.5), 3, generator=generator)
        assert [bool((action != 0.5).any()) for action in imagined.action] == explored
