import pytest
import torch as th
from torch.nn import functional as F

from sb3_mbrl.networks.ensemble import CHUNK, EnsembleLinear, EnsembleMLP, Standardiser


def by_hand(mlp: EnsembleMLP, member: int, rows: th.Tensor) -> th.Tensor:
    """Layer by layer with ``torch.nn.functional.linear``."""
    for i, layer in enumerate(mlp.layers):
        rows = F.linear(rows, layer.weight[member].T, layer.bias[member, 0])
        if i < len(mlp.layers) - 1:
            rows = F.silu(rows)
    return rows


def test_one_batched_product_equals_separate_networks():
    mlp = EnsembleMLP(3, 4, [5, 6], 2)
    inputs = th.randn(3, 7, 4)
    expected = th.stack([by_hand(mlp, e, inputs[e]) for e in range(3)])
    th.testing.assert_close(mlp(inputs), expected)


@pytest.mark.parametrize("rows", [1, 8, 2 * CHUNK + 3])
def test_rows_are_computed_by_their_own_member_in_their_own_place(rows, generator):
    mlp = EnsembleMLP(3, 4, [5], 2)
    inputs, member = th.randn(rows, 4), th.randint(3, (rows,), generator=generator)
    expected = th.stack([by_hand(mlp, int(e), row[None])[0] for e, row in zip(member[:50], inputs[:50], strict=True)])
    with th.no_grad():
        th.testing.assert_close(mlp.rows(inputs, member)[:50], expected)
    with_gradient = mlp.rows(inputs, member)
    th.testing.assert_close(with_gradient[:50].detach(), expected.detach())


def test_rows_carry_gradients_to_their_member_only():
    mlp = EnsembleMLP(3, 4, [5], 2)
    inputs = th.randn(6, 4, requires_grad=True)
    mlp.rows(inputs, th.tensor([0, 2, 0, 2, 0, 2])).sum().backward()
    assert inputs.grad.abs().sum(1).min() > 0
    assert mlp.layers[0].weight.grad[1].abs().max() == 0
    assert mlp.layers[0].weight.grad[0].abs().max() > 0


def test_initial_weights_are_truncated_normals_of_half_the_usual_scale():
    weight = EnsembleLinear(20, 100, 200).weight.detach()
    # A normal cut at two standard deviations has 0.88 of its deviation.
    assert abs(float(weight.std()) / (1 / (2 * 100**0.5)) - 0.88) < 0.01
    assert weight.abs().max() <= 2 / (2 * 100**0.5)


def test_standardiser_leaves_constant_columns_at_scale_one():
    rows = th.stack([th.full((100,), 1234.567), th.linspace(-1, 1, 100), th.zeros(100)], dim=1)
    standardiser = Standardiser(3)
    standardiser.fit(rows)
    assert standardiser.std[0] == 1.0
    assert standardiser.std[2] == 1.0
    out = standardiser(rows)
    assert abs(float(out[:, 1].std(correction=0)) - 1) < 1e-5
    assert out[:, 0].abs().max() < 1e-2
    th.testing.assert_close(standardiser.inverse(out), rows)


@pytest.mark.parametrize("scale", [1e20, 1e38])
def test_standardiser_of_columns_whose_sums_overflow(scale):
    """The mean was infinite, and every prediction NaN."""
    rows = scale * th.tensor([[1.0], [-1.0], [3.0], [1.0]]).clamp(-2, 2)
    standardiser = Standardiser(1)
    standardiser.fit(rows)
    assert standardiser.mean.isfinite().all()
    assert standardiser.std.isfinite().all()
    assert standardiser(rows).abs().max() < 2


def plain(network: EnsembleMLP, member: int, rows: th.Tensor) -> th.Tensor:
    """Compute one member's outputs layer by layer."""
    for i, layer in enumerate(network.layers[:-1]):
        rows = F.silu(rows @ layer.weight[member] + layer.bias[member, 0])
        mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, correction=0, keepdim=True)
        rows = (rows - mean) / (variance + network.layer_norm[i]).sqrt()
    return rows @ network.layers[-1].weight[member] + network.layers[-1].bias[member, 0]


@pytest.mark.parametrize("grad", [True, False])
def test_layer_norms_are_the_same_in_every_way_of_computing_members(grad):
    th.manual_seed(0)
    network, rows = EnsembleMLP(3, 4, [8, 6], 5, layer_norm=[1.0, 0.1]), th.randn(3000, 4)
    member = th.arange(3000) % 3
    with th.set_grad_enabled(grad):
        everyone, chosen = network(rows.expand(3, -1, -1)), network.rows(rows, member)
    expected = th.stack([plain(network, e, rows) for e in range(3)])
    th.testing.assert_close(everyone, expected, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(chosen, expected[member, th.arange(3000)], rtol=1e-4, atol=1e-5)


def test_dropout_is_for_gradients_alone():
    th.manual_seed(0)
    network, rows = EnsembleMLP(2, 4, [64], 5, dropout=[0.5]), th.randn(2, 10, 4)
    assert not th.equal(network(rows), network(rows))
    with th.no_grad():  # the held-out error of a fit
        th.testing.assert_close(network(rows), network(rows), rtol=0, atol=0)
    network.eval()
    th.testing.assert_close(network(rows), network(rows), rtol=0, atol=0)


@pytest.mark.parametrize("n", [5, 12, 256])
def test_even_groups_are_computed_together_with_the_same_gradient(n):
    th.manual_seed(0)
    network = EnsembleMLP(5, 4, [8], 3, layer_norm=[0.1])
    member = th.randperm(n) % 5
    rows = th.randn(n, 4, requires_grad=True)
    expected = network(rows.expand(5, -1, -1))[member, th.arange(n)]
    got = network.rows(rows, member)
    th.testing.assert_close(got, expected)
    weight = th.randn(n, 3)
    wanted = th.autograd.grad((expected * weight).sum(), [rows, *network.parameters()])
    found = th.autograd.grad((got * weight).sum(), [rows, *network.parameters()])
    for one, other in zip(found, wanted, strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
