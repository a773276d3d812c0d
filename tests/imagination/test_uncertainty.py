"""Measures of uncertainty against torch.distributions and computations by hand."""

import math

import pytest
import torch as th
from torch.distributions import Independent, Normal, kl_divergence

from sb3_mbrl import MBPO
from sb3_mbrl.contracts import MemberPrediction
from sb3_mbrl.imagination import uncertainty


def members(n: int = 3, rows: int = 5, columns: int = 2) -> MemberPrediction:
    generator = th.Generator().manual_seed(0)
    mean = th.randn(n, rows, columns, generator=generator)
    variance = th.rand(n, rows, columns, generator=generator) + 0.1
    return MemberPrediction(mean, variance, mean.sum(2), th.zeros(n, rows))


def gaussian(mean: th.Tensor, variance: th.Tensor) -> Independent:
    return Independent(Normal(mean, variance.sqrt()), 1)


def test_the_pairwise_divergence_is_that_of_the_definition():
    given, pairs = members(), []
    for i in range(3):
        for j in range(i):
            p, q = given.variance[i], given.variance[j]
            variance = 2 / (1 / p + 1 / q)
            middle = gaussian(variance * (given.mean[i] / p + given.mean[j] / q) / 2, variance)
            pairs.append(sum(kl_divergence(middle, gaussian(given.mean[e], given.variance[e])) for e in (i, j)) / 2)
    th.testing.assert_close(uncertainty.pairwise_divergence(given), sum(pairs) / 3)


def test_two_members_by_hand():
    """Variances of 1, means 1 apart: GJS = 1 / (4 * 2)."""
    given = MemberPrediction(th.tensor([[[0.0]], [[1.0]]]), th.ones(2, 1, 1), th.zeros(2, 1), th.zeros(2, 1))
    assert float(uncertainty.pairwise_divergence(given)) == pytest.approx(1 / 8)
    # The other member is all of the rest: KL(N(0, 1), N(1, 1)) = 1/2.
    assert float(uncertainty.one_against_rest(given, th.tensor([0]))) == pytest.approx(0.5)
    assert float(uncertainty.largest_deviation(given)) == 1.0
    fused = uncertainty.fuse(given)
    assert float(fused.mean) == 0.5
    assert float(fused.variance) == 1.0
    assert float(fused.gain) == pytest.approx(1 / (1 + 0.25))
    assert float(fused.lost) == pytest.approx(0.2)


def test_one_against_rest_is_the_divergence_from_the_others_mixture():
    given, member = members(), th.tensor([0, 1, 2, 1, 0])
    got = uncertainty.one_against_rest(given, member)
    for row, e in enumerate(member.tolist()):
        others = [i for i in range(3) if i != e]
        mean = given.mean[others, row].mean(0)
        variance = given.variance[others, row].mean(0) + given.mean[others, row].var(0, correction=0)
        expected = kl_divergence(gaussian(given.mean[e, row], given.variance[e, row]), gaussian(mean, variance))
        assert float(got[row]) == pytest.approx(float(expected), rel=1e-5)


def test_the_joint_deviation_is_that_of_draws():
    given = members(rows=1)
    draws = given.mean + given.variance.sqrt() * th.randn(100_000, 3, 1, 2, generator=th.Generator().manual_seed(1))
    expected = draws.flatten(0, 1).std(0).mean() + given.reward.std(0, correction=0)
    assert float(uncertainty.joint_deviation(given)) == pytest.approx(float(expected), rel=0.01)


def test_the_largest_deviation_is_the_frobenius_norm_of_the_roots():
    given = members()
    norms = th.stack([th.diag_embed(given.variance[e].sqrt()).norm(dim=(1, 2)) for e in range(3)])
    th.testing.assert_close(uncertainty.largest_deviation(given), norms.amax(0))


def test_members_that_agree_lose_nothing():
    mean = th.randn(1, 4, 2).expand(3, -1, -1)
    given = MemberPrediction(mean, th.full((3, 4, 2), 0.3), mean.sum(2), th.zeros(3, 4))
    assert uncertainty.pairwise_divergence(given).abs().max() < 1e-6
    fused = uncertainty.fuse(given)
    th.testing.assert_close(fused.mean, mean[0])
    assert fused.lost.max() < 1e-6
    assert (fused.gain - 1).abs().max() < 1e-6


@pytest.mark.parametrize("measure", [uncertainty.pairwise_divergence, uncertainty.fuse])
def test_what_cannot_be_compared_is_refused(measure):
    given = members()
    with pytest.raises(ValueError, match="A single member cannot disagree"):
        measure(MemberPrediction(*(part[:1] for part in given)))
    with pytest.raises(ValueError, match="probabilistic=True"):
        measure(given._replace(variance=th.zeros_like(given.variance)))


def test_constant_columns_add_nothing():
    given = members()
    wider = given._replace(
        mean=th.cat([given.mean, th.full((3, 5, 1), 7.0)], 2), variance=th.cat([given.variance, th.zeros(3, 5, 1)], 2)
    )
    th.testing.assert_close(uncertainty.pairwise_divergence(wider), uncertainty.pairwise_divergence(given))
    assert math.isfinite(float(uncertainty.fuse(wider).lost.sum()))


@pytest.mark.parametrize("name", ["macura", "infoprop", "m2ac", "mopo", "wimle", "steve"])
def test_ensembles_that_cannot_be_compared_are_refused_when_the_agent_is_built(name):
    certain = {"members": 2, "elites": 2, "probabilistic": False, "hidden": [4]}
    alone = {"members": 3, "elites": 1, "hidden": [4]}
    if name not in ("wimle", "steve"):
        with pytest.raises(ValueError, match="probabilistic=True"):
            MBPO("MlpPolicy", "Pendulum-v1", imagination=name, world_model="ensemble", world_model_kwargs=certain)
    if name != "mopo":
        with pytest.raises(ValueError, match="A single member cannot disagree"):
            MBPO("MlpPolicy", "Pendulum-v1", imagination=name, world_model="ensemble", world_model_kwargs=alone)


def test_rounding_of_large_means_is_no_disagreement():
    mean = th.full((3, 4, 2), 1000.0 + 1 / 3)
    given = MemberPrediction(mean, th.full((3, 4, 2), 1e-8), mean.sum(2), th.zeros(3, 4))
    assert (uncertainty.fuse(given).gain - 1).abs().max() < 1e-6
