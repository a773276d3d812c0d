"""Layers against their formulas."""

import math

import pytest
import torch as th

from sb3_mbrl.networks.layers import BlockLinear, Linear, RMSNorm, _RMSNorm, symexp, symlog


def test_a_block_linear_map_is_a_dense_one_with_a_block_diagonal_matrix(generator):
    layer, x = BlockLinear(12, 8, 4), th.randn((5, 12), generator=generator)
    with th.no_grad():
        layer.bias.normal_(generator=generator)
    dense = th.block_diag(*layer.weight)
    th.testing.assert_close(layer(x), x @ dense + layer.bias)
    with pytest.raises(ValueError, match="cannot be cut into 5 blocks"):
        BlockLinear(12, 8, 5)


def test_initial_weights_keep_the_variance():
    """Truncated at two deviations, and of variance 1 / fan_in after that; blocks count the whole input."""
    th.manual_seed(0)
    assert float(Linear(400, 300).weight.var() * 400) == pytest.approx(1.0, abs=0.02)
    assert float(BlockLinear(400, 800, 4).weight.var() * 400) == pytest.approx(1.0, abs=0.02)
    assert float(Linear(400, 300).weight.abs().max()) <= 2 * 1.1368 / 20 + 1e-6
    assert not Linear(4, 3, scale=0.0).weight.any()


def test_rms_norm_by_the_formula(generator):
    norm, x = RMSNorm(6), th.randn((3, 6), generator=generator)
    with th.no_grad():
        norm.weight.copy_(th.arange(1.0, 7.0))
    expected = x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt() * norm.weight
    th.testing.assert_close(norm(x), expected)
    with th.no_grad():
        th.testing.assert_close(norm(x), expected)
    assert norm(x.to(th.bfloat16)).dtype == th.bfloat16


def test_the_gradient_of_rms_norm(generator):
    """Its own, against finite differences."""
    x, weight = (th.randn(shape, generator=generator, dtype=th.float64).requires_grad_() for shape in ((3, 2, 5), (5,)))
    assert th.autograd.gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, th.tensor(1e-2)), (x, weight))


def test_symlog_and_back():
    x = th.tensor([-1e6, -1.0, 0.0, 0.5, 1e6], dtype=th.float64)
    th.testing.assert_close(symexp(symlog(x)), x)
    assert float(symlog(th.tensor(math.e - 1))) == pytest.approx(1.0)
