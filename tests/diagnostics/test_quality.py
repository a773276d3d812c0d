"""The metrics of a model's quality against closed forms."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Prediction, Sequences, Transitions, WorldModel
from sb3_mbrl.diagnostics import columns_of, k_step_error, one_step_quality, quality
from sb3_mbrl.holdout import evaluate
from sb3_mbrl.models.analytic import PendulumModel
from sb3_mbrl.spaces import SpaceCodec
from sb3_mbrl.testing import LinearToy, RewardToy

ACTION = spaces.Box(-1, 1, (1,))
N = 4000


def box(n: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (n,))


class Says(WorldModel):
    """
    A model whose predictions are given functions of the encoded observation.

    :param mean: of a deterministic step
    :param draw: of any other (default: the same)
    """

    fitted = True

    def __init__(self, space, mean, draw=None, reward=0.0, terminated=0.0):
        super().__init__(space, ACTION, device="cpu")
        self.codec, self.reward, self.terminated = SpaceCodec(space), reward, terminated
        self.mean, self.draw = mean, draw or (lambda state, generator: mean(state))

    def initial(self, obs, snapshot=None):
        return self.codec.encode(obs)

    def step(self, state, action, *, deterministic=False, generator=None):
        following = self.mean(state) if deterministic else self.draw(state, generator)
        zero = th.zeros(len(state))
        return Prediction(following, zero + self.reward, zero + self.terminated)

    def decode(self, state):
        return self.codec.decode(state)


def rows(next_obs, obs=None, reward=None, terminated=None) -> Transitions:
    n = len(next_obs)
    zeros = th.zeros(n)
    obs = th.zeros_like(next_obs) if obs is None else obs
    return Transitions(
        obs, th.zeros(n, 1), next_obs, zeros if reward is None else reward, zeros if terminated is None else terminated
    )


def quality_of(model: WorldModel, data: Transitions) -> dict[str, float]:
    return one_step_quality(model, SpaceCodec(model.observation_space), data)


def alternating(n: int = N, scale: float = 1.0) -> th.Tensor:
    """``+scale, -scale, ...``: mean 0, variance ``scale^2``."""
    return scale * (1 - 2.0 * (th.arange(n) % 2))


def test_errors_of_the_trivial_predictors_in_closed_form():
    # Column 0: truth has variance 4, the state is 1 off everywhere. Column 1: variance 9, the state is 6 off.
    truth = th.stack([alternating(scale=2), alternating(scale=3)], 1)
    obs = truth + th.tensor([1.0, -6.0])
    metrics = quality_of(Says(box(2), lambda x: x - th.tensor([0.5, 0.0])), rows(truth, obs))
    assert metrics["copy_error"] == pytest.approx(math.sqrt((1 / 4 + 36 / 9) / 2))
    assert metrics["mean_error"] == pytest.approx(1.0)
    # The model is half off in column 0 and copies in column 1.
    assert metrics["error"] == pytest.approx(math.sqrt((0.25 / 4 + 36 / 9) / 2))
    # Column 0 against the copy (1), column 1 against the mean (9), where 36 / 9 is cut to 2.
    assert metrics["vs_trivial"] == pytest.approx((0.25 / 1 + 2) / 2)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
def test_metrics_do_not_depend_on_units(scale, offset):
    x = th.randn(N, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    truth, obs = x.float(), (x + 0.5).float()
    plain = quality_of(Says(box(2), lambda o: o - 0.3), rows(truth, obs))
    in_units = quality_of(Says(box(2), lambda o: o - 0.3 * scale), rows((truth + offset) * scale, (obs + offset) * scale))
    assert in_units == pytest.approx(plain, rel=1e-2 if offset else 1e-4)


@pytest.mark.parametrize("dim", [1, 4])
def test_an_exact_model_is_better_than_trivial(dim):
    model = LinearToy(box(dim), ACTION, device="cpu")
    g = th.Generator().manual_seed(0)
    obs, action = th.randn(N, dim, generator=g), th.rand(N, 1, generator=g)
    step = model.step(obs, action)
    data = Transitions(obs, action, step.state, step.reward, step.terminated)
    metrics = quality_of(model, data)
    assert metrics["vs_trivial"] == metrics["error"] == metrics["reward_error"] == metrics["term_brier"] == 0.0


def test_a_model_that_predicts_noise_is_not():
    g = th.Generator().manual_seed(0)
    truth = th.randn(N, 3, generator=g)
    metrics = quality_of(Says(box(3), lambda x: th.randn(x.shape, generator=g)), rows(truth))
    # Error of one draw against another: the variance twice.
    assert metrics["vs_trivial"] == pytest.approx(2.0, abs=0.05)
    assert metrics["error"] == pytest.approx(math.sqrt(2), abs=0.05)


def test_nothing_is_gained_by_predicting_trivially():
    truth = th.randn(N, 3, generator=th.Generator().manual_seed(0)).cumsum(0)
    obs = truth.roll(1, 0)
    assert quality_of(Says(box(3), lambda x: x), rows(truth[1:], obs[1:]))["vs_trivial"] == pytest.approx(1.0)
    mean = truth.mean(0)
    assert quality_of(Says(box(3), lambda x: mean.expand_as(x)), rows(truth))["vs_trivial"] >= 1.0 - 1e-4


def test_columns_that_never_change_are_skipped():
    # A constant, and a goal that lasts an episode: copying is exact there.
    truth = th.stack([alternating(), th.full((N,), 5.0), th.arange(N) // 100 * 1.0], 1)
    obs = th.stack([truth[:, 0] + 1, truth[:, 1], truth[:, 2]], 1)
    metrics = quality_of(Says(box(3), lambda x: x + th.tensor([-0.5, 3.0, 0.7])), rows(truth, obs))
    assert metrics["vs_trivial"] == pytest.approx(0.25)
    # The goal does vary over the data, so it is part of the error; the constant is not.
    variance = float(truth[:, 2].var(correction=0))
    assert metrics["error"] == pytest.approx(math.sqrt((0.25 + 0.49 / variance) / 2), rel=1e-4)


@pytest.mark.parametrize("dim", [3, 11])
def test_one_impossible_column_does_not_veto(dim):
    g = th.Generator().manual_seed(0)
    truth = th.randn(N, dim, generator=g)
    obs = truth.clone()
    obs[:, 1:] += 1  # columns that the model knows well, and a first one where it is wrong by far
    model = Says(box(dim), lambda x: th.cat([x[:, :1] + 100, x[:, 1:] - 0.9], 1))
    metrics = quality_of(model, rows(truth, th.cat([th.randn(N, 1, generator=g), obs[:, 1:]], 1)))
    assert metrics["vs_trivial"] == pytest.approx((2 + (dim - 1) * 0.01) / dim, rel=1e-3)
    assert metrics["vs_trivial"] < 1


def test_noise_that_nobody_predicts_leaves_the_verdict_to_the_rest():
    g = th.Generator().manual_seed(0)
    noise, x = th.randn(N, 9, generator=g), th.randn(N, 1, generator=g)
    data = rows(th.cat([noise, x], 1), th.cat([noise.roll(1, 0), x + 1], 1))
    good = Says(box(10), lambda o: th.cat([th.zeros(len(o), 9), o[:, 9:] - 0.9], 1))
    bad = Says(box(10), lambda o: th.cat([th.zeros(len(o), 9), o[:, 9:] - 3.0], 1))
    assert quality_of(good, data)["vs_trivial"] == pytest.approx(0.9, abs=0.02)
    assert quality_of(bad, data)["vs_trivial"] > 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("n_wrong", [1, N])
def test_predictions_that_are_not_finite_count_as_bad(wrong, n_wrong):
    truth = th.stack([alternating(), th.full((N,), 5.0)], 1)

    def says(x):
        x = x.clone()
        x[:n_wrong] = wrong
        return x

    metrics = quality_of(Says(box(2), says), rows(truth, truth + 0.1))
    # Also in the column that does not vary.
    assert metrics["vs_trivial"] == 2.0
    assert metrics["error"] == math.inf


def test_nothing_varies():
    still = th.full((N, 2), 3.0)
    assert quality_of(Says(box(2), lambda x: x + 1), rows(still, still))["vs_trivial"] == 0.0
    assert quality_of(Says(box(2), lambda x: x * float("nan")), rows(still, still))["vs_trivial"] == 2.0


def test_the_mean_of_a_single_row_is_no_trivial_predictor():
    truth, obs = th.tensor([[1.0, 2.0]]), th.tensor([[0.0, 0.0]])
    # Errors 0.25 and 4 against copies that are wrong by 1 and 4.
    metrics = quality_of(Says(box(2), lambda x: th.tensor([[0.5, 0.0]])), rows(truth, obs))
    assert metrics["vs_trivial"] == pytest.approx((0.25 + 1) / 2)


# ---- categories and bits


def wheel(place, generator):
    """A wheel of 8 places: one step on, or two, or back to the first, each with a third."""
    move = th.randint(3, place.shape, generator=generator)
    return th.where(move == 2, 0, (place + move + 1) % 8)


def one_hot(place):
    return th.nn.functional.one_hot(place, 8).float()


def test_the_true_probabilities_of_a_random_world_are_better_than_trivial():
    g = th.Generator().manual_seed(7)  # not that of the evaluation
    place = th.randint(8, (N,), generator=g)
    data = rows(wheel(place, g)[:, None], place[:, None])
    truth = Says(
        spaces.Discrete(8),
        lambda x: one_hot((x.argmax(1) + 1) % 8),
        lambda x, generator: one_hot(wheel(x.argmax(1), generator)),
    )
    # P(0) is 5/12 and P(any other place) 1/12, so predicting the mean has errors of 35/144 and 11/144. The true probability of
    # place 0 is always 1/3 or 2/3, that of another is 1/3 from two places and 0 from six: errors of 2/9 and 2/8 * 2/9.
    quality = quality_of(truth, data)["vs_trivial"]
    assert quality == pytest.approx((2 / 9 / (35 / 144) + 7 * (1 / 18) / (11 / 144)) / 8, abs=0.03)
    assert quality < 0.8
    # Its mode alone is wrong two times in three, which is worse than the mean: that must not decide.
    mode = Says(spaces.Discrete(8), truth.mean)
    assert quality_of(mode, data)["vs_trivial"] > 1


def test_a_model_that_draws_places_blindly_is_not():
    g = th.Generator().manual_seed(0)
    place = th.randint(8, (N,), generator=g)
    blind = Says(spaces.Discrete(8), lambda x: x, lambda x, generator: one_hot(th.randint(8, (len(x),), generator=generator)))
    assert quality_of(blind, rows(((place + 1) % 8)[:, None], place[:, None]))["vs_trivial"] >= 0.99


def test_an_exact_model_of_bits_and_numbers():
    space = spaces.Dict(bits=spaces.MultiBinary(2), x=box(1))
    bits, x = (th.rand(N, 2, generator=th.Generator().manual_seed(0)) < 0.5).to(th.int8), alternating()[:, None]
    model = Says(space, lambda s: th.stack([1 - s[:, 0], s[:, 0], s[:, 2] + 1], 1))
    following = {"bits": th.stack([1 - bits[:, 0], bits[:, 0]], 1), "x": x + 1}
    zeros = th.zeros(N)
    metrics = quality_of(model, Transitions({"bits": bits, "x": x}, zeros[:, None], following, zeros, zeros))
    assert metrics["vs_trivial"] == metrics["error"] == 0.0


def test_a_state_that_is_not_finite_counts_as_bad_although_it_decodes_to_some_category():
    place = th.arange(N)[:, None] % 8
    broken = Says(spaces.Discrete(8), lambda x: x * float("nan"))
    assert quality_of(broken, rows((place + 1) % 8, place))["vs_trivial"] == 2.0


def test_judging_leaves_the_global_random_stream_alone_and_repeats_itself():
    g = th.Generator().manual_seed(0)
    place = th.randint(8, (50,), generator=g)
    data = rows(wheel(place, g)[:, None], place[:, None])
    model = Says(spaces.Discrete(8), lambda x: x, lambda x, generator: one_hot(wheel(x.argmax(1), generator)))
    before = th.get_rng_state()
    assert quality_of(model, data) == quality_of(model, data)
    assert th.equal(th.get_rng_state(), before)


# ---- reward and termination


@pytest.mark.parametrize(
    ("reward", "said", "error"),
    [
        (alternating(scale=3), 0.0, 1.0),  # the mean
        (alternating(scale=3) + 7, 7.0, 1.0),
        (alternating(scale=3), 3.0, math.sqrt(2)),  # off by 0 and 6
        (th.full((N,), 4.0), 4.0, 0.0),
        (th.full((N,), 4.0), 3.0, 0.25),  # constant: relative to its size
        (th.zeros(N), 0.5, 0.5),  # zero: absolute
        (alternating(), float("nan"), math.inf),
    ],
)
def test_reward_error(reward, said, error):
    truth = alternating()[:, None]
    metrics = quality_of(Says(box(1), lambda x: x, reward=said), rows(truth, reward=reward))
    assert metrics["reward_error"] == pytest.approx(error)


def test_termination_metrics():
    terminated = (th.arange(N) % 4 == 0).float()
    metrics = quality_of(Says(box(1), lambda x: x, terminated=0.9), rows(alternating()[:, None], terminated=terminated))
    assert metrics["term_brier"] == pytest.approx(0.25 * 0.1**2 + 0.75 * 0.9**2)
    assert metrics["term_recall"] == pytest.approx(0.9)
    never = quality_of(Says(box(1), lambda x: x), rows(alternating()[:, None]))
    assert never["term_brier"] == 0.0
    assert "term_recall" not in never


# ---- several steps


def pendulum_windows(n: int, length: int) -> Sequences:
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    columns = []
    for i in range(n):
        obs, _ = env.reset(seed=i)
        steps = []
        for _ in range(length):
            action = env.action_space.sample()
            following, reward, *_ = env.step(action)
            steps.append((obs, action / 2, following, np.float32(reward), np.float32(0), np.bool_(False), np.bool_(False)))
            obs = following
        columns.append([np.stack(column) for column in zip(*steps, strict=True)])
    return Sequences(*(th.as_tensor(np.stack(column)) for column in zip(*columns, strict=True)))


@pytest.mark.parametrize("length", [1, 5, 15])
def test_the_twin_of_pendulum_makes_no_error(length):
    model, windows = PendulumModel(device="cpu"), pendulum_windows(20, length)
    codec = SpaceCodec(model.observation_space)
    error, copy = k_step_error(model, codec, windows)
    assert error < 1e-4
    # The copy's error, by hand.
    start, end = windows.obs[:, 0], windows.next_obs[:, -1]
    expected = ((end - start).square().mean(0) / end.var(0, correction=0)).mean().sqrt()
    assert copy == pytest.approx(float(expected), rel=1e-4)
    # A model that copies makes the same error, however often.
    still = Says(model.observation_space, lambda x: x)
    assert k_step_error(still, codec, windows)[0] == pytest.approx(copy)


def test_errors_after_several_steps_in_closed_form():
    # Truth moves by 1 per step, the model by 0.8: after 5 steps it is 1 behind, and the copy 5.
    space = box(2)
    start = th.randn(30, 1, 2)
    obs = start + th.arange(5.0)[None, :, None]
    flags = th.zeros(30, 5, dtype=th.bool)
    windows = Sequences(obs, th.zeros(30, 5, 1), obs + 1, th.zeros(30, 5), th.zeros(30, 5), flags, flags)
    variance = th.tensor([4.0, 16.0])
    error, copy = k_step_error(Says(space, lambda x: x + 0.8), SpaceCodec(space), windows, variance)
    assert error == pytest.approx(math.sqrt((1 / 4 + 1 / 16) / 2), rel=1e-5)
    assert copy == pytest.approx(5 * error, rel=1e-5)


def test_a_context_is_filtered_and_not_predicted():
    class Filters(Says):
        context = 3

        def filter(self, obs, actions, is_first):
            assert obs.shape[1] == 3
            return self.codec.encode(obs[:, -1])

    space = box(1)
    obs = th.randn(30, 1, 1) + th.arange(5.0)[None, :, None]
    flags = th.zeros(30, 5, dtype=th.bool)
    windows = Sequences(obs, th.zeros(30, 5, 1), obs + 1, th.zeros(30, 5), th.zeros(30, 5), flags, flags)
    # Columns 0 to 2 are the context; steps 2, 3 and 4 are predicted.
    error, copy = k_step_error(Filters(space, lambda x: x + 0.5), SpaceCodec(space), windows, th.ones(1))
    assert (error, copy) == pytest.approx((1.5, 3.0), rel=1e-5)


def test_a_broken_model_has_an_infinite_error():
    space = box(1)
    obs, flags = th.randn(30, 2, 1), th.zeros(30, 2, dtype=th.bool)
    windows = Sequences(obs, th.zeros(30, 2, 1), obs + 1, th.zeros(30, 2), th.zeros(30, 2), flags, flags)
    assert k_step_error(Says(space, lambda x: x / 0), SpaceCodec(space), windows)[0] == math.inf


def test_the_last_step_of_a_context_is_judged():
    """The noise of latent states does not count: the mean of the samples is right, so the model has no error."""

    class Remembers(Says):
        context = 3

        def filter(self, obs, actions, is_first):
            return self.codec.encode(obs[:, 0])

    g = th.Generator().manual_seed(0)
    first = th.randn(N, 1, 2, generator=g)
    obs = th.cat([first, th.randn(N, 2, 2, generator=g)], 1)
    zeros, flags = th.zeros(N, 3), th.zeros(N, 3, dtype=th.bool)
    windows = Sequences(obs, th.zeros(N, 3, 1), obs[:, :1].expand(-1, 3, -1), zeros, zeros, flags, flags)
    model = Remembers(box(2), lambda x: x + 1.0, lambda x, generator: x + th.randn(x.shape, generator=generator))
    metrics = one_step_quality(model, SpaceCodec(box(2)), windows, g)
    assert metrics["vs_trivial"] == pytest.approx(0.0, abs=0.03)
    assert metrics["copy_error"] == pytest.approx(math.sqrt(2), abs=0.05)


def test_images_are_judged_by_their_pixels():
    space = spaces.Dict({"image": spaces.Box(0, 255, (1, 4, 4), np.uint8), "number": box(1), "kind": spaces.Discrete(3)})
    columns = columns_of(space)
    image = th.zeros(2, 1, 4, 4, dtype=th.uint8)
    image[0, 0, 1, 2] = 51
    encoded = columns.encode({"image": image, "number": th.tensor([[7.0], [8.0]]), "kind": th.tensor([[2], [0]])})
    # In the order of the keys: a picture from 0 to 1, a one-hot vector, a number.
    expected = th.zeros(2, 20)
    expected[0, 6], expected[0, 18], expected[1, 16] = 0.2, 1, 1
    expected[:, 19] = th.tensor([7.0, 8.0])
    th.testing.assert_close(encoded, expected)
    assert columns.mask("categorical").nonzero().flatten().tolist() == [16, 17, 18]


def test_broken_models_of_images_are_recognised():
    space = spaces.Box(0, 255, (1, 4, 4), np.uint8)

    class Shows(Says):
        def __init__(self, mean):
            WorldModel.__init__(self, space, ACTION, device="cpu")
            self.mean, self.reward, self.terminated = mean, 0.0, 0.0

        def initial(self, obs, snapshot=None):
            return obs.flatten(1).float()

        def decode(self, state):
            return state.clamp(0, 255).to(th.uint8).view(-1, 1, 4, 4)

    g = th.Generator().manual_seed(0)
    before = th.randint(0, 256, (200, 1, 4, 4), generator=g, dtype=th.uint8)
    data = rows(255 - before, before)
    models = {"exact": lambda x: 255 - x, "copy": lambda x: x, "blank": lambda x: 0 * x}
    quality = {name: one_step_quality(Shows(mean), columns_of(space), data)["vs_trivial"] for name, mean in models.items()}
    assert quality == pytest.approx({"exact": 0.0, "copy": 2.0, "blank": 2.0})


def test_a_model_that_does_not_decode_is_judged_by_rewards_and_terminations():
    """Regression: it was evaluated by its observations alone, so ``decode`` raised."""
    rows = Transitions(th.zeros(N, 2), th.zeros(N, 1), th.zeros(N, 2), th.arange(N) / N, (th.arange(N) % 4 == 0).float())
    model = RewardToy(box(2), ACTION, device="cpu")
    assert not model.decodes

    def quality_of_model(reward, terminated):
        model.step = lambda *args, **kwargs: Prediction(th.zeros(N, 32), reward, terminated)
        return one_step_quality(model, SpaceCodec(box(2)), rows)

    metrics = quality_of_model(rows.reward, rows.terminated)
    votes = {"vs_trivial": 0.0, "vs_trivial_reward": 0.0, "vs_trivial_term": 0.0}
    assert metrics == {"reward_error": 0.0, "term_brier": 0.0, "term_recall": 1.0, **votes}
    mean = quality_of_model(rows.reward.mean().expand(N), rows.terminated.mean().expand(N))
    assert mean["vs_trivial"] == pytest.approx(1.0)
    # One of two columns is predicted.
    assert quality_of_model(rows.reward, rows.terminated.mean().expand(N))["vs_trivial"] == pytest.approx(0.5)


def test_open_loop_errors_of_a_model_that_does_not_decode():
    model = RewardToy(box(2), ACTION, device="cpu")
    flags = th.zeros(30, 3, dtype=th.bool)
    reward = th.randn(30, 3, generator=th.Generator().manual_seed(0))
    zeros = th.zeros(30, 3)
    windows = Sequences(th.zeros(30, 3, 2), th.zeros(30, 3, 1), th.zeros(30, 3, 2), reward, zeros, flags, flags)
    last = reward[:, -1]
    model.step = lambda *args, **kwargs: Prediction(th.zeros(30, 32), last, zeros[:, 0])
    assert k_step_error(model, SpaceCodec(box(2)), windows) == (0.0, 1.0)
    model.step = lambda *args, **kwargs: Prediction(th.zeros(30, 32), last.mean().expand(30), zeros[:, 0])
    assert k_step_error(model, SpaceCodec(box(2)), windows)[0] == pytest.approx(1.0)


# ---- who has a vote


def test_what_follows_a_termination_has_no_vote():
    """One-step episodes whose last observation is the next visitor's: the error there decided, although nobody sees it."""
    truth, ended = th.stack([alternating(), alternating()], 1), (th.arange(N) % 2).float()
    obs = truth + 1
    model = Says(box(2), lambda x: x - 0.5, terminated=ended)
    shown = truth.clone()
    shown[ended > 0] = 1e6
    metrics = quality_of(model, rows(shown, obs, terminated=ended))
    going = ended == 0
    assert metrics["copy_error"] == quality_of(Says(box(2), lambda x: x), rows(truth[going], obs[going]))["error"]
    # Of the steps that did not terminate, none varies: the termination alone has a vote, and is known exactly.
    assert metrics["vs_trivial"] == metrics["vs_trivial_term"] == 0.0
    only_ends = quality_of(Says(box(2), lambda x: x, terminated=th.ones(N)), rows(shown, obs, terminated=th.ones(N)))
    assert only_ends == {"vs_trivial": 0.0, "reward_error": 0.0, "term_brier": 0.0, "term_recall": 1.0}


@pytest.mark.parametrize(
    ("reward", "vote"), [(alternating(), 0.0), (0.0, 1.0), (0.5 * alternating(), 0.25), (-alternating(), 2.0), (100.0, 2.0)]
)
def test_a_learned_reward_votes_as_one_capped_column(reward, vote):
    truth = alternating()[:, None]
    exact = Says(box(1), lambda x: x - 1, reward=reward)
    metrics = quality_of(exact, rows(truth, truth + 1, reward=alternating()))
    assert metrics["vs_trivial_obs"] == 0.0
    assert metrics["vs_trivial_reward"] == pytest.approx(vote)
    assert metrics["vs_trivial"] == pytest.approx(vote / 2)
    exact.reward_fn = lambda obs, action, next_obs: next_obs[:, 0]
    assert quality_of(exact, rows(truth, truth + 1, reward=alternating()))["vs_trivial"] == 0.0


def test_constant_observations_with_a_reward_that_is_not_learned():
    """Nothing varied but the reward, which had no vote: such a model was trusted whatever it predicted."""
    still = th.full((N, 2), 3.0)
    metrics = quality_of(Says(box(2), lambda x: x, reward=0.0), rows(still, still, reward=alternating()))
    assert metrics["vs_trivial"] == metrics["vs_trivial_reward"] == pytest.approx(1.0)
    assert not evaluate(Says(box(2), lambda x: x, reward=0.0), rows(still, still, reward=alternating())).trusted


def test_the_verdict_does_not_depend_on_the_size_of_the_parts_that_are_judged(monkeypatch):
    g = th.Generator().manual_seed(0)
    truth = th.randn(N, 3, generator=g)
    data = rows(truth, truth + 1, reward=truth[:, 0], terminated=(truth[:, 1] > 1).float())
    model = Says(box(3), lambda x: x - 0.7, reward=0.3, terminated=0.2)
    whole = quality_of(model, data)
    monkeypatch.setattr(quality, "CHUNK", 30)
    assert quality_of(model, data) == pytest.approx(whole, rel=1e-9)
    th.testing.assert_close(quality.variance_of(SpaceCodec(box(3)), truth).float(), truth.var(0, correction=0))


def test_open_loop_errors_leave_out_what_follows_a_termination():
    space = box(1)
    obs, flags = th.zeros(4, 2, 1), th.zeros(4, 2, dtype=th.bool)
    ended = th.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    following = th.tensor([9e9, 1.0, 2.0, 3.0]).view(4, 1, 1).expand(4, 2, 1)
    windows = Sequences(obs, th.zeros(4, 2, 1), following, th.zeros(4, 2), ended, flags, flags)
    error, copy = k_step_error(Says(space, lambda x: x + 1), SpaceCodec(space), windows)
    # Two steps lead from 0 to 2; 1, 2 and 3 with the variance 2/3 are true.
    assert (error, copy) == pytest.approx((math.sqrt((1 + 0 + 1) / 3 * 1.5), math.sqrt((1 + 4 + 9) / 3 * 1.5)))
    all_ended = windows._replace(terminated=th.ones(4, 2))
    assert all(math.isnan(value) for value in k_step_error(Says(space, lambda x: x), SpaceCodec(space), all_ended))


@pytest.mark.parametrize(("events", "ratio"), [(1, 1.1), (5, 1.5), (10, 2.0), (40, 2.0)])
def test_a_termination_that_was_hardly_ever_seen_has_less_than_a_full_vote(events, ratio):
    """One termination in a hundred rows gave a ratio of 2 to a model that knew the probabilities, and a veto."""
    ended = (th.arange(N) < events).float()
    wrong = Says(box(1), lambda x: x, terminated=1 - ended)
    metrics = quality_of(wrong, rows(th.zeros(N, 1), terminated=ended))
    assert metrics["vs_trivial_term"] == pytest.approx(ratio, rel=0.02)


def test_rewards_and_terminations_of_a_mode_are_not_held_against_a_model_of_probabilities():
    """A deterministic step of a count of outcomes is the most frequent one: with 0 for a termination that has a third."""

    class Counts(Says):
        def step(self, state, action, *, deterministic=False, generator=None):
            edge = state.argmax(1) == 0
            ends = edge & (th.rand(len(state), generator=generator) < 1 / 3) if not deterministic else edge & False
            return Prediction(state, ends.float(), ends.float())

    g = th.Generator().manual_seed(7)
    place = th.randint(2, (N, 1), generator=g)
    ended = ((place[:, 0] == 0) & (th.rand(N, generator=g) < 1 / 3)).float()
    metrics = quality_of(Counts(spaces.Discrete(2), None), rows(place, place, reward=ended, terminated=ended))
    # With the probability 1/3 in half of the rows, the error is 1/2 * 2/9 and the variance 1/6 * 5/6.
    assert metrics["vs_trivial_term"] == pytest.approx((1 / 9) / (5 / 36), abs=0.03)
    assert metrics["vs_trivial_reward"] == metrics["vs_trivial_term"]
