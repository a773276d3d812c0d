"""Outputs of networks against closed forms."""

import math

import numpy as np
import pytest
import torch as th

from sb3_mbrl.networks.layers import symexp
from sb3_mbrl.networks.outputs import (
    BernoulliOutput,
    NormalOutput,
    OneHotOutput,
    ScaledOutput,
    SymlogOutput,
    TwoHotOutput,
    inverse_value_transform,
    value_transform,
)


def test_a_two_hot_head_that_begins_at_zero_predicts_exactly_zero():
    for output in (TwoHotOutput(), TwoHotOutput(in_symlog=True)):
        assert output.scale == 0.0
        assert float(output.mean(th.zeros(255))) == 0.0
        assert float(output.mean(th.full((255,), 0.3))) == 0.0


def test_a_two_hot_mean_of_nearly_equal_weights_is_not_rounded_to_nonsense(generator):
    """In float32 the same numbers in another order of summation were 0.9 apart."""
    output, logits = TwoHotOutput(), 1e-6 * th.randn(255, generator=generator)
    exact = (logits.double().softmax(-1) * output.bins.double()).sum()
    assert float(output.mean(logits)) == pytest.approx(float(exact), abs=1e-4)


def two_weights(output, target):
    """All weights of the bins, ``(..., bins)``."""
    below, share = output.between(target)
    weights = th.zeros(*target.shape, output.n_bins).scatter_(-1, below[..., None], (1 - share)[..., None])
    return weights.scatter_(-1, below[..., None] + 1, share[..., None])


@pytest.mark.parametrize("in_symlog", [False, True])
def test_the_gradient_of_a_two_hot_mean(in_symlog, generator):
    output, logits = TwoHotOutput(11, 3.0, in_symlog=in_symlog), th.randn((4, 11), generator=generator).requires_grad_()
    mean = (logits.softmax(-1) * output.bins).sum(-1)
    expected = symexp(mean) if in_symlog else mean
    th.testing.assert_close(output.mean(logits), expected)
    weights = th.arange(1.0, 5.0)
    for got, wanted in zip(*(th.autograd.grad(x @ weights, logits) for x in (output.mean(logits), expected)), strict=True):
        th.testing.assert_close(got, wanted)


@pytest.mark.parametrize("in_symlog", [False, True])
def test_two_hot_targets_come_back(in_symlog):
    output = TwoHotOutput(in_symlog=in_symlog)
    target = th.tensor([-1e6, -37.5, -1.0, -1e-3, 0.0, 0.4, 1.0, 250.0, 1e6])
    weights = two_weights(output, target)
    assert (weights > 0).sum(-1).max() <= 2
    th.testing.assert_close(weights.sum(-1), th.ones(9))
    th.testing.assert_close(output.mean(weights.clamp(min=1e-30).log()), target, rtol=2e-3, atol=1e-3)


def test_two_hot_by_hand():
    """Bins at symexp of -2, -1, 0, 1, 2; 3 lies between e - 1 and e^2 - 1."""
    output = TwoHotOutput(5, 2.0)
    low, high = math.e - 1, math.e**2 - 1
    np.testing.assert_allclose(output.bins, [-high, -low, 0, low, high], rtol=1e-6)
    share = (3 - low) / (high - low)
    np.testing.assert_allclose(two_weights(output, th.tensor(3.0)), [0, 0, 0, 1 - share, share], rtol=1e-5)
    np.testing.assert_allclose(two_weights(output, th.tensor(1e9)), [0, 0, 0, 0, 1])
    assert float(output.loss(th.zeros(5), th.tensor(3.0))) == pytest.approx(math.log(5))
    with pytest.raises(ValueError, match="bins=4: give an odd number"):
        TwoHotOutput(4)


def test_other_outputs_by_hand():
    two = th.tensor([1.0, -2.0])
    assert float(NormalOutput((2,)).loss(two, th.zeros(2))) == pytest.approx(2.5)
    assert float(SymlogOutput((2,)).loss(th.zeros(2), symexp(two))) == pytest.approx(5.0)
    th.testing.assert_close(SymlogOutput((2,)).mean(two), symexp(two))
    # A target of 0.9 is best met by a probability of 0.9.
    logit = th.tensor([0.0], requires_grad=True)
    BernoulliOutput().loss(logit, th.tensor(0.9)).backward()
    assert float(logit.grad) == pytest.approx(0.5 - 0.9)
    assert float(OneHotOutput(4).loss(th.zeros(4), th.tensor([0.0, 1.0, 0.0, 0.0]))) == pytest.approx(math.log(4))
    assert OneHotOutput(3).mean(th.tensor([0.0, 5.0, 1.0])).tolist() == [0.0, 1.0, 0.0]


class TestScaledOutput:
    """MuZero's categorical numbers."""

    def test_the_transform_and_its_inverse(self):
        x = th.tensor([-300.0, -1.0, 0.0, 0.01, 3.0, 1e4])
        y = value_transform(x)
        assert float(y[4]) == pytest.approx(np.sqrt(4.0) - 1 + 0.003)
        assert th.allclose(inverse_value_transform(y), x, rtol=1e-4, atol=1e-4)

    def test_a_target_is_the_mean_of_its_two_bins(self):
        output = ScaledOutput(11, 10.0)
        target = th.tensor([-7.0, -0.3, 0.0, 2.0, 9.9])
        weights = output.two_hot(target)
        assert th.allclose(weights.sum(-1), th.ones(5))
        assert ((weights > 0).sum(-1) <= 2).all()
        assert th.allclose(output.mean(weights.clamp(min=1e-12).log()), target, atol=1e-3)

    def test_targets_beyond_the_range_count_as_the_outermost_bins(self):
        output = ScaledOutput(11, 10.0)
        assert th.allclose(output.two_hot(th.tensor([1e6])), output.two_hot(th.tensor([10.0])), atol=1e-5)

    def test_equal_logits_are_exactly_zero(self):
        assert float(ScaledOutput(51, 300.0).mean(th.zeros(51))) == 0.0

    def test_the_loss_is_the_cross_entropy(self):
        output = ScaledOutput(3, 1.0)
        assert float(output.loss(th.zeros(3), th.tensor(0.3))) == pytest.approx(np.log(3))
