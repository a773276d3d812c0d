"""Heads: layers on features, and the mean and loss of their distribution."""

import math

import pytest
import torch as th

from sb3_mbrl.networks import layers
from sb3_mbrl.networks.heads import Head
from sb3_mbrl.networks.outputs import BernoulliOutput, NormalOutput, OneHotOutput, TwoHotOutput


def linear(output=None):
    """A head without layers that adds up its two features, plus 1."""
    head = Head(2, 4, 0, output or NormalOutput())
    with th.no_grad():
        head.out.weight.fill_(1.0)
        head.out.bias.fill_(1.0)
    return head


def test_mean_and_loss_by_hand():
    head, features = linear(), th.tensor([[1.0, 2.0], [0.0, -3.0]])
    assert head.mean(features).tolist() == [4.0, -2.0]
    # Half the squared error of a normal distribution with standard deviation 1.
    assert head.loss(features, th.tensor([1.0, -2.0])).tolist() == [4.5, 0.0]
    assert linear(BernoulliOutput()).mean(th.tensor([[0.0, -1.0]])).tolist() == [0.5]


def test_any_leading_axes_and_the_shape_of_a_target():
    features = th.randn(5, 7, 2, generator=th.Generator().manual_seed(0))
    assert linear().mean(features).shape == (5, 7)
    head = Head(2, 4, 1, NormalOutput((2, 3)))
    assert head(features).shape == (5, 7, 6)
    assert head.mean(features).shape == (5, 7, 2, 3)
    assert head.loss(features, th.zeros(5, 7, 2, 3)).shape == (5, 7)
    assert Head(2, 4, 1, OneHotOutput(4)).mean(features).sum(-1).eq(1).all()


def test_a_mean_in_chunks_is_the_mean_of_all_rows(monkeypatch):
    head, features = Head(3, 8, 2, TwoHotOutput(15, 3.0)), th.randn(10, 3, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        head.out.weight.normal_(generator=th.Generator().manual_seed(1))
    whole = head.mean(features)
    monkeypatch.setattr(layers, "ROWS_AT_A_TIME", 4)
    assert [len(rows) for rows in layers.chunks(features)] == [4, 4, 2]
    th.testing.assert_close(head.mean(features), whole)


def test_a_head_begins_by_predicting_what_its_distribution_says():
    """A two-hot head at exactly 0, with a loss of the logarithm of the number of bins; a normal one near 0."""
    features = th.randn(6, 3, generator=th.Generator().manual_seed(0))
    head = Head(3, 8, 1, TwoHotOutput(255))
    assert head.mean(features).tolist() == [0.0] * 6
    assert head.loss(features, th.full((6,), 3.0)).tolist() == pytest.approx([math.log(255)] * 6)
    assert Head(3, 8, 1, NormalOutput()).out.weight.abs().sum() > 0


def test_gradients_reach_every_weight():
    head = Head(3, 8, 2, NormalOutput())
    head.loss(th.randn(6, 3, generator=th.Generator().manual_seed(0)), th.ones(6)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters() if parameter.dim() > 1)
