import math

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.models.vector_heads import Targets, VectorHeads
from sb3_mbrl.spaces import SpaceCodec


def heads(space=None, **kwargs) -> VectorHeads:
    options = {
        "members": 2,
        "probabilistic": True,
        "target": "delta",
        "normalize_targets": False,
        "nll_beta": 0.0,
        "learn_reward": True,
        "learn_termination": False,
    }
    return VectorHeads(SpaceCodec(space or spaces.Box(-9, 9, (2,))), **{**options, **kwargs})


def test_gaussian_loss_against_the_formula():
    """mean[(mu - y)^2 exp(-logvar)] + mean[logvar] + 0.01 mean[max - min], summed over members, computed by hand."""
    part = heads()
    obs, next_obs = th.tensor([[1.0, 2.0]]), th.tensor([[1.5, 1.0]])
    targets = part.targets(obs, next_obs, th.tensor([3.0]), th.tensor([0.0]))
    assert targets.numbers.tolist() == [[0.5, -1.0, 3.0]]
    raw = th.zeros(2, 1, part.out_features)
    raw[1, 0, :3] = th.tensor([0.5, 0.0, 1.0])
    everyone = type(targets)(*(value.expand(2, *value.shape) for value in targets))

    def soft(value: float) -> float:
        upper = 0.5 - math.log1p(math.exp(0.5 - value))
        return -10 + math.log1p(math.exp(upper + 10))

    logvar = soft(0.0)
    squares = [0.25 + 1 + 9, 0 + 1 + 4]
    expected = sum(total / 3 * math.exp(-logvar) + logvar for total in squares) + 0.01 * 2 * 10.5
    assert float(part.loss(raw, everyone)) == pytest.approx(expected, rel=1e-5)


def test_log_variances_stay_within_their_bounds():
    part = heads()
    raw = th.zeros(2, 3, part.out_features)
    raw[:, 0, 3:6], raw[:, 1, 3:6] = 1e4, -1e4
    _, logvar, _, _ = part.split(raw)
    assert logvar.max() <= 0.51
    assert logvar.min() >= -10.0
    assert logvar.isfinite().all()


def test_targets_are_standardised_one_by_one():
    """FTFL (arXiv 2510.01457): with a joint scale the largest target takes the loss for itself."""
    part = heads(normalize_targets=True)
    obs = th.zeros(200, 2)
    next_obs = th.stack([th.linspace(-100, 100, 200), th.linspace(-0.001, 0.001, 200)], dim=1)
    raw = part.targets(obs, next_obs, th.linspace(0, 7, 200), th.zeros(200))
    targets = part.fit_normaliser(raw)
    th.testing.assert_close(targets.numbers.std(0, correction=0), th.ones(3))
    th.testing.assert_close(part.standardiser.inverse(targets.numbers), raw.numbers)


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_never_varied_is_predicted_not_to_vary(deterministic, generator):
    """A planner drove the cart off its track for rewards of 1.002 where every reward had been 1."""
    part = heads(normalize_targets=True)
    obs = th.randn(50, 2, generator=generator)
    next_obs = th.stack([obs[:, 0] * 2, obs[:, 1]], 1)
    part.fit_normaliser(part.targets(obs, next_obs, th.ones(50), th.zeros(50)))
    raw = th.randn(50, part.out_features, generator=generator)
    outcome = part.predict(raw, obs, member=0, deterministic=deterministic, generator=generator)
    assert outcome.reward.tolist() == [1.0] * 50
    assert th.equal(outcome.obs[:, 1], obs[:, 1])
    assert not th.allclose(outcome.obs[:, 0], next_obs[:, 0])
    assert part.numbers_in_units(raw, obs, 0)[1][:, 1].tolist() == [0.0] * 50


@pytest.mark.parametrize("target", ["delta", "next"])
def test_prediction_undoes_the_target(target):
    part = heads(target=target, normalize_targets=True, probabilistic=False)
    obs, next_obs, reward = th.randn(50, 2), th.randn(50, 2), th.randn(50)
    targets = part.fit_normaliser(part.targets(obs, next_obs, reward, th.zeros(50)))
    outcome = part.predict(targets.numbers, obs, member=0, deterministic=True, generator=None)
    th.testing.assert_close(outcome.obs, next_obs)
    th.testing.assert_close(outcome.reward, reward)


def test_samples_have_the_predicted_mean_and_variance(generator):
    part = heads(normalize_targets=True)
    part.standardiser.mean.copy_(th.tensor([1.0, 2.0, 3.0]))
    part.standardiser.std.copy_(th.tensor([10.0, 0.1, 1.0]))
    raw = th.zeros(20_000, part.out_features)
    outcome = part.predict(raw, th.zeros(20_000, 2), member=0, deterministic=False, generator=generator)
    mean, variance = part.numbers_in_units(raw[:1], th.zeros(1, 2), 0)
    th.testing.assert_close(outcome.obs.mean(0), mean[0], rtol=0.1, atol=0.1)
    th.testing.assert_close(outcome.obs.var(0), variance[0], rtol=0.05, atol=0)


def test_categories_are_drawn_from_the_softmax(generator):
    part = heads(spaces.MultiDiscrete([3, 2]), learn_reward=False)
    raw = th.tensor([[math.log(0.7), math.log(0.2), math.log(0.1), 0.0, math.log(3.0)]]).expand(20_000, 5)
    outcome = part.predict(raw, th.zeros(20_000, 5), member=0, deterministic=False, generator=generator)
    th.testing.assert_close(outcome.obs.mean(0), th.tensor([0.7, 0.2, 0.1, 0.25, 0.75]), rtol=0, atol=0.015)
    assert set(outcome.obs.sum(1).tolist()) == {2.0}


def test_label_loss_is_the_cross_entropy():
    space = spaces.Dict(c=spaces.Discrete(3), b=spaces.MultiBinary(2))
    part = heads(space, members=1, learn_reward=False)
    codec = SpaceCodec(space)
    obs = codec.encode({"c": th.tensor([[1]]), "b": th.tensor([[1, 0]])})
    targets = part.targets(obs, obs, th.zeros(1), th.zeros(1))
    raw = th.zeros(1, 1, part.out_features)
    # ln 3 for the category, ln 2 for the bits: the mean of both
    assert float(part.loss(raw, type(targets)(*(t[None] for t in targets)))) == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_without_a_single_termination_in_the_data_none_is_predicted():
    part = heads(learn_termination=True)
    obs = th.randn(10, 2)
    part.fit_normaliser(part.targets(obs, obs, th.zeros(10), th.zeros(10)))
    raw = th.full((4, part.out_features), 5.0)
    assert part.predict(raw, obs[:4], member=0, deterministic=True, generator=None).terminated.tolist() == [0.0] * 4
    part.fit_normaliser(part.targets(obs, obs, th.zeros(10), th.eye(10)[0]))
    th.testing.assert_close(
        part.predict(raw, obs[:4], member=0, deterministic=True, generator=None).terminated, th.full((4,), 5.0).sigmoid()
    )


def test_the_bounds_of_many_columns_do_not_drive_each_other_past():
    """With a sum instead of the mean, 46 columns end at one constant variance, 30 times too wide on quiet rows."""
    generator = th.Generator().manual_seed(0)
    part = heads(spaces.Box(-9, 9, (46,)), members=1, learn_reward=False)
    logit = th.nn.Parameter(th.zeros(2, 46))
    optimizer = th.optim.Adam([logit, part.max_logvar, part.min_logvar], lr=0.05)
    quiet = th.arange(512) % 2
    deviation = th.tensor([1.0, 0.01])[quiet][:, None]
    for _ in range(800):
        noise = deviation * th.randn(512, 46, generator=generator)
        targets = part.targets(th.zeros(512, 46), noise, th.zeros(512), th.zeros(512))
        raw = th.cat([th.zeros(512, 46), logit[quiet]], dim=1)[None]
        optimizer.zero_grad()
        part.loss(raw, type(targets)(*(value[None] for value in targets))).backward()
        optimizer.step()
    _, logvar, _, _ = part.split(th.cat([th.zeros(2, 46), logit.detach()], dim=1)[None])
    assert (part.min_logvar < part.max_logvar).all()
    th.testing.assert_close((0.5 * logvar[0].detach()).exp().mean(1), th.tensor([1.0, 0.01]), rtol=0.2, atol=0)


def test_what_only_the_termination_head_learned_counts_on_the_holdout_data():
    """Where noise dominates the squared error, early stopping without it put the untrained head back at every fit."""
    part = heads(learn_termination=True, learn_reward=False, probabilistic=False)
    obs = th.zeros(4, 2)
    targets = part.targets(obs, obs, th.zeros(4), th.tensor([1.0, 1.0, 0.0, 0.0]))
    part.fit_normaliser(targets)
    raw = th.zeros(2, 4, part.out_features)
    raw[1, :, 2] = th.tensor([9.0, 9.0, -9.0, -9.0])
    untrained, trained = part.score(raw, targets)
    assert float(untrained) == pytest.approx(math.log(2))
    assert float(trained) < 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_how_much_an_error_counts_where_the_variance_is_large(beta):
    """Seitzer et al. 2022: the gradient of a mean is 2 (mu - y) / var^(1 - beta); variances still follow the likelihood."""
    part = heads(nll_beta=beta)
    raw = th.randn(2, 1, part.out_features, generator=th.Generator().manual_seed(0)).requires_grad_()
    targets = Targets(th.zeros(2, 1, 3), th.zeros(2, 1, 0), th.zeros(2, 1))
    (gradient,) = th.autograd.grad(part.loss(raw, targets), raw)
    mean, logvar, _, _ = part.split(raw.detach())
    th.testing.assert_close(gradient[..., :3], 2 * mean / logvar.exp() ** (1 - beta) / 3)
    # Where the likelihood wants no change of a variance, nothing else does.
    assert th.equal((gradient[..., 3:6] > 0), (mean.square() < logvar.exp()))


def test_constant_noise_is_one_number_per_member_and_column():
    heads = VectorHeads(
        SpaceCodec(spaces.Box(-1, 1, (2,))),
        members=2,
        probabilistic=True,
        target="delta",
        normalize_targets=False,
        nll_beta=0.0,
        learn_reward=True,
        learn_termination=False,
        noise="constant",
    )
    assert heads.out_features == 3, "means alone"
    with th.no_grad():
        heads.log_std.copy_(th.tensor([[[0.0, -1.0, -20.0]], [[0.5, -1.0, 0.0]]]))
    raw = th.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 2.0]]])
    targets = Targets(th.zeros(2, 1, 3), th.zeros(2, 1, 0), th.zeros(2, 1))
    # Per member the mean over columns of (mu - y)^2 / var + log var; the smallest standard deviation is 0.001.
    zero, minus, half, least = (2 * soft(value) for value in (0.0, -1.0, 0.5, -20.0))
    assert least == pytest.approx(2 * math.log(1e-3), abs=1e-4)
    assert zero == pytest.approx(0.0, abs=0.003)
    first = (math.exp(-zero) + zero) + minus + least
    second = half + minus + (4.0 * math.exp(-zero) + zero)
    assert float(heads.loss(raw, targets).detach()) == pytest.approx((first + second) / 3, rel=1e-5)
    assert float(heads.terms(raw, targets).total().detach()) == pytest.approx((first + second) / 3, rel=1e-5)
    weight = th.tensor([[2.0], [0.0]])
    assert float(heads.loss(raw, targets, weight).detach()) == pytest.approx(2 * first / 3, rel=1e-5)
    rows = raw[th.tensor([1, 0, 1]), 0]
    _, logvar, _, _ = heads.split(rows, th.tensor([1, 0, 1]))
    th.testing.assert_close(logvar[:, 0], th.tensor([half, zero, half]))
    heads.loss(raw, targets).backward()
    assert heads.log_std.grad[0, 0, 2].abs() > 1e-7, "a column that was certain can become uncertain again"


def soft(log_std: float) -> float:
    """Compute the bounded log standard deviation, ``m + log(1 + exp(x - m))`` with ``m = log(0.001)``."""
    least = math.log(1e-3)
    return least + math.log1p(math.exp(log_std - least))


def test_the_score_of_a_row_is_the_likelihood_of_all_members_together():
    heads = VectorHeads(
        SpaceCodec(spaces.Box(-1, 1, (1,))),
        members=2,
        probabilistic=True,
        target="next",
        normalize_targets=False,
        nll_beta=0.0,
        learn_reward=False,
        learn_termination=False,
        noise="constant",
    )
    with th.no_grad():
        heads.log_std.copy_(th.tensor([[[0.0]], [[math.log(2.0)]]]))  # variances 1 and 4
    raw = th.tensor([[[1.0]], [[3.0]]])
    score = heads.row_scores(raw, Targets(th.zeros(1, 1), th.zeros(1, 0), th.zeros(1)))
    noise = (math.exp(2 * soft(0.0)) + math.exp(2 * soft(math.log(2.0)))) / 2
    variance = noise + 1.0  # of the noise (2.5 but for the bound), and between the members
    assert float(score.detach()) == pytest.approx(0.5 * (2.0**2 / variance + math.log(variance)))
