"""Layers, latents, outputs and cells against closed forms and transcriptions of the formulas."""

import math

import numpy as np
import pytest
import torch as th
from torch import distributions as dist

from sb3_mbrl.models.rssm.cells import BlockGRUCell, LayerNormGRUCell
from sb3_mbrl.models.rssm.settings import make_settings
from sb3_mbrl.networks.convolutions import ImageDecoder, ImageEncoder, sides
from sb3_mbrl.networks.latents import (
    CategoricalLatent,
    GaussianLatent,
    balanced_kl,
    joint_kl,
    one_sided_kl,
    softmax,
    split_kl,
)
from sb3_mbrl.networks.layers import BlockLinear, Linear, RMSNorm, _RootMeanSquare, symexp, symlog
from sb3_mbrl.networks.outputs import Bernoulli, Normal, OneHot, SymlogSquaredError, TwoHot

# ---- layers


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
    assert th.autograd.gradcheck(lambda x, weight: _RootMeanSquare.apply(x, weight, th.tensor(1e-2)), (x, weight))


def test_symlog_and_back():
    x = th.tensor([-1e6, -1.0, 0.0, 0.5, 1e6], dtype=th.float64)
    th.testing.assert_close(symexp(symlog(x)), x)
    assert float(symlog(th.tensor(math.e - 1))) == pytest.approx(1.0)


# ---- latents


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_categories_against_torch(unimix, generator):
    latent = CategoricalLatent(3, 5, unimix)
    left, right = (3 * th.randn((4, 15), generator=generator) for _ in range(2))

    def reference(stats):
        probs = (1 - unimix) * stats.view(4, 3, 5).softmax(-1) + unimix / 5
        return dist.Independent(dist.OneHotCategorical(probs=probs), 1)

    for found in one_sided_kl(latent, left, right):
        th.testing.assert_close(found, dist.kl_divergence(reference(left), reference(right)))
    th.testing.assert_close(latent.entropy(left), reference(left).entropy())
    assert float(latent.log_probs(1e9 * left).exp().min()) == pytest.approx(unimix / 5, abs=1e-7)


@pytest.mark.parametrize("classes", [1, 4, 8, 9])
def test_a_softmax_over_few_against_torch(classes, generator):
    logits = 50 * th.randn((3, 2, classes), generator=generator, dtype=th.float64)
    th.testing.assert_close(softmax(logits), logits.softmax(-1))
    assert th.autograd.gradcheck(softmax, (logits / 50).requires_grad_())


@pytest.mark.parametrize("unimix", [0.0, 0.3])
def test_categories_are_drawn_by_their_probabilities_and_pass_gradients_through(unimix):
    latent = CategoricalLatent(2, 3, unimix)
    stats = th.tensor([0.1, 0.6, 0.3, 0.5, 0.5, 1e-9]).log().requires_grad_()
    sample = latent.sample(stats.expand(20_000, -1), th.Generator().manual_seed(0))
    assert sample.unique().tolist() == [0.0, 1.0]
    th.testing.assert_close(sample.sum(-1), th.ones(20_000, 2))
    th.testing.assert_close(sample.mean(0), latent.probs(stats.detach()), atol=0.012, rtol=0)
    with th.no_grad():
        th.testing.assert_close(latent.sample(stats.expand(20_000, -1), th.Generator().manual_seed(0)), sample)
    weights, through = th.arange(6.0), stats.detach().clone().requires_grad_()
    (sample[0].flatten() * weights).sum().backward()
    (latent.probs(through).flatten() * weights).sum().backward()
    th.testing.assert_close(stats.grad, through.grad)
    assert latent.mode(stats).argmax(-1).tolist() == [1, 0]


def test_no_noise_is_beyond_the_last_category():
    """Sums of probabilities are rounded, and the largest noise is the largest number below 1."""
    latent, largest = CategoricalLatent(1, 7, 0.01), 1 - 2**-24
    noise = th.full((1000, 1, 1), largest) / 0.99
    assert (latent.draw(th.randn(1000, 7, generator=th.Generator().manual_seed(0)), noise).sum(-1) == 1).all()
    none = latent.draw(th.zeros(7), th.zeros(1, 1))
    assert none.argmax(-1).tolist() == [0]


@pytest.mark.parametrize("std", ["softplus", "sigmoid2"])
def test_gaussians_against_torch(std, generator):
    latent = GaussianLatent(4, std, 0.1)
    left, right = (th.randn((3, 8), generator=generator) for _ in range(2))
    (m1, s1), (m2, s2) = latent.moments(left), latent.moments(right)
    one, other = (dist.Independent(dist.Normal(m, s), 1) for m, s in ((m1, s1), (m2, s2)))
    for found in one_sided_kl(latent, left, right):
        th.testing.assert_close(found, dist.kl_divergence(one, other))
    th.testing.assert_close(latent.entropy(left), one.entropy())
    draws = latent.sample(left.expand(20_000, 3, 8), generator)
    th.testing.assert_close(draws.mean(0), m1, atol=0.05, rtol=0)
    th.testing.assert_close(draws.std(0), s1, atol=0.05, rtol=0)
    expected = th.nn.functional.softplus(left[:, 4:]) if std == "softplus" else 2 * th.sigmoid(left[:, 4:] / 2)
    th.testing.assert_close(s1, expected + 0.1)


def test_divergences_below_the_free_nats_move_nothing():
    latent = CategoricalLatent(1, 2, 0.0)
    post, prior = th.tensor([[0.1, 0.0]], requires_grad=True), th.zeros(1, 2, requires_grad=True)
    for loss in split_kl(one_sided_kl(latent, post, prior)):
        assert float(loss) == 1.0
        loss.sum().backward()
    assert post.grad is None or not post.grad.any()
    assert prior.grad is None or not prior.grad.any()


def test_which_side_each_divergence_moves():
    latent = CategoricalLatent(1, 2, 0.0)

    def gradients(make):
        post, prior = th.tensor([[9.0, 0.0]], requires_grad=True), th.tensor([[0.0, 9.0]], requires_grad=True)
        make(post, prior).sum().backward()
        zero = th.zeros(1, 2)
        return tuple(zero if x.grad is None else x.grad for x in (post, prior))

    dynamics = gradients(lambda a, b: split_kl(one_sided_kl(latent, a, b))[0])
    representation = gradients(lambda a, b: split_kl(one_sided_kl(latent, a, b))[1])
    assert not dynamics[0].any()
    assert dynamics[1].any()
    assert representation[0].any()
    assert not representation[1].any()
    both = gradients(lambda a, b: joint_kl(one_sided_kl(latent, a, b)))
    mixed = gradients(lambda a, b: balanced_kl(one_sided_kl(latent, a, b), balance=0.8))
    for i in range(2):
        th.testing.assert_close(mixed[i], 0.8 * dynamics[i] + 0.2 * representation[i])
        th.testing.assert_close(both[i], dynamics[i] + representation[i])


def test_planets_and_dreamers_free_nats_by_hand():
    latent = GaussianLatent(1, min_std=0.0)
    width = math.log(math.e - 1)  # softplus: 1
    post, prior = th.tensor([[1.0, width], [4.0, width]]), th.tensor([[0.0, width]] * 2)
    th.testing.assert_close(one_sided_kl(latent, post, prior)[0], th.tensor([0.5, 8.0]))
    assert float(joint_kl(one_sided_kl(latent, post, prior), free=3.0)) == pytest.approx(4.25)
    assert float(joint_kl(one_sided_kl(latent, post, prior), free=3.0, per_step=True)) == pytest.approx(2.5)
    assert float(joint_kl(one_sided_kl(latent, post, prior), free=5.0)) == 5.0


def test_settings_that_there_are_not():
    with pytest.raises(ValueError, match="latent='discrete': choose one of 'categorical', 'gaussian'"):
        make_settings("tiny", {"latent": "discrete"})
    with pytest.raises(ValueError, match="choose one of size1m, size12m"):
        make_settings("small", {})
    with pytest.raises(TypeError, match=r"does not take 'unit'\. Did you mean 'units'"):
        make_settings("tiny", {"unit": 8})
    with pytest.raises(ValueError, match="stoch=0: give a whole number from 1"):
        make_settings("tiny", {"stoch": 0})
    with pytest.raises(ValueError, match=r"unimix=1\.0: a uniform distribution alone"):
        make_settings("tiny", {"unimix": 1.0})


# ---- outputs


def test_a_two_hot_head_that_begins_at_zero_predicts_exactly_zero():
    for output in (TwoHot(), TwoHot(in_symlog=True)):
        assert output.scale == 0.0
        assert float(output.mean(th.zeros(255))) == 0.0
        assert float(output.mean(th.full((255,), 0.3))) == 0.0


def test_a_two_hot_mean_of_nearly_equal_weights_is_not_rounded_to_nonsense(generator):
    """In float32 the same numbers in another order of summation were 0.9 apart."""
    output, logits = TwoHot(), 1e-6 * th.randn(255, generator=generator)
    exact = (logits.double().softmax(-1) * output.bins.double()).sum()
    assert float(output.mean(logits)) == pytest.approx(float(exact), abs=1e-4)


def two_weights(output, target):
    """All weights of the bins, ``(..., bins)``."""
    below, share = output.between(target)
    weights = th.zeros(*target.shape, output.n_bins).scatter_(-1, below[..., None], (1 - share)[..., None])
    return weights.scatter_(-1, below[..., None] + 1, share[..., None])


@pytest.mark.parametrize("in_symlog", [False, True])
def test_the_gradient_of_a_two_hot_mean(in_symlog, generator):
    output, logits = TwoHot(11, 3.0, in_symlog=in_symlog), th.randn((4, 11), generator=generator).requires_grad_()
    mean = (logits.softmax(-1) * output.bins).sum(-1)
    expected = symexp(mean) if in_symlog else mean
    th.testing.assert_close(output.mean(logits), expected)
    weights = th.arange(1.0, 5.0)
    for found, wanted in zip(*(th.autograd.grad(x @ weights, logits) for x in (output.mean(logits), expected)), strict=True):
        th.testing.assert_close(found, wanted)


@pytest.mark.parametrize("in_symlog", [False, True])
def test_two_hot_targets_come_back(in_symlog):
    output = TwoHot(in_symlog=in_symlog)
    target = th.tensor([-1e6, -37.5, -1.0, -1e-3, 0.0, 0.4, 1.0, 250.0, 1e6])
    weights = two_weights(output, target)
    assert (weights > 0).sum(-1).max() <= 2
    th.testing.assert_close(weights.sum(-1), th.ones(9))
    th.testing.assert_close(output.mean(weights.clamp(min=1e-30).log()), target, rtol=2e-3, atol=1e-3)


def test_two_hot_by_hand():
    """Bins at symexp of -2, -1, 0, 1, 2; 3 lies between e - 1 and e^2 - 1."""
    output = TwoHot(5, 2.0)
    low, high = math.e - 1, math.e**2 - 1
    np.testing.assert_allclose(output.bins, [-high, -low, 0, low, high], rtol=1e-6)
    share = (3 - low) / (high - low)
    np.testing.assert_allclose(two_weights(output, th.tensor(3.0)), [0, 0, 0, 1 - share, share], rtol=1e-5)
    np.testing.assert_allclose(two_weights(output, th.tensor(1e9)), [0, 0, 0, 0, 1])
    assert float(output.loss(th.zeros(5), th.tensor(3.0))) == pytest.approx(math.log(5))
    with pytest.raises(ValueError, match="bins=4: give an odd number"):
        TwoHot(4)


def test_other_outputs_by_hand():
    two = th.tensor([1.0, -2.0])
    assert float(Normal((2,)).loss(two, th.zeros(2))) == pytest.approx(2.5)
    assert float(SymlogSquaredError((2,)).loss(th.zeros(2), symexp(two))) == pytest.approx(5.0)
    th.testing.assert_close(SymlogSquaredError((2,)).mean(two), symexp(two))
    # A target of 0.9 is best met by a probability of 0.9.
    logit = th.tensor([0.0], requires_grad=True)
    Bernoulli().loss(logit, th.tensor(0.9)).backward()
    assert float(logit.grad) == pytest.approx(0.5 - 0.9)
    assert float(OneHot(4).loss(th.zeros(4), th.tensor([0.0, 1.0, 0.0, 0.0]))) == pytest.approx(math.log(4))
    assert OneHot(3).mean(th.tensor([0.0, 5.0, 1.0])).tolist() == [0.0, 1.0, 0.0]


# ---- cells


def test_the_block_gru_by_the_formula(generator):
    cell = BlockGRUCell(8, 3, 2, hidden=5, blocks=2)
    deter, stoch, action = (th.randn((4, n), generator=generator) for n in (8, 3, 2))
    action = 2 * action
    got = cell(deter, stoch, cell.prepare(action))
    clipped = action / action.abs().clamp(min=1)
    seen = th.cat([cell.from_deter(deter), cell.from_stoch(stoch), cell.from_action(clipped)], 1)
    hidden = []
    for b in range(2):
        inputs = th.cat([deter[:, 4 * b : 4 * b + 4], seen], 1)
        hidden.append(inputs @ cell.mixed.weight[b] + cell.mixed.bias[4 * b : 4 * b + 4])
    x = th.nn.functional.silu(cell.norm(th.cat(hidden, 1)))
    expected = []
    for b in range(2):
        gates = x[:, 4 * b : 4 * b + 4] @ cell.gates.weight[b] + cell.gates.bias[12 * b : 12 * b + 12]
        reset, candidate, update = gates.chunk(3, 1)
        candidate, update = th.tanh(th.sigmoid(reset) * candidate), th.sigmoid(update - 1)
        expected.append(update * candidate + (1 - update) * deter[:, 4 * b : 4 * b + 4])
    th.testing.assert_close(got, th.cat(expected, 1))


@pytest.mark.parametrize("kind", ["gru", "layer_norm_gru", "block_gru"])
def test_cells_go_on_with_action_and_sample(kind, generator):
    cell = make_settings("tiny", {"cell": kind, "deter": 16, "hidden": 8}).make_cell(4, 2)
    deter, stoch, action = (th.randn((3, n), generator=generator) for n in (16, 4, 2))
    once = cell(deter, stoch, cell.prepare(action))
    assert once.shape == (3, 16)
    assert not th.equal(once, cell(deter, stoch, cell.prepare(action + 0.5 * action.sign().neg())))
    assert not th.equal(once, cell(deter, stoch + 1, cell.prepare(action)))


def test_a_layer_norm_gru_forgets_slowly_at_first():
    """The update gate's bias of -1: sigmoid(-1) is new."""
    cell = LayerNormGRUCell(6, 2, 1, hidden=4)
    with th.no_grad():
        cell.norm.weight.zero_()
    deter = th.ones(1, 6)
    th.testing.assert_close(cell(deter, th.zeros(1, 2), th.zeros(1, 1)), deter * (1 - th.sigmoid(th.tensor(-1.0))))


# ---- images


SIDES = {64: 4, 36: 3, 16: 4, 10: 3, 96: 6, 128: 8, 300: 10}
"""Of square images, and of what is left of them"""


@pytest.mark.parametrize(("size", "expected"), [*(((a, a), (b, b)) for a, b in SIDES.items()), ((84, 96), (6, 6))])
def test_sizes_of_images(size, expected):
    assert sides(*size)[-1] == expected


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 16, 16), (3, 37, 50)])
def test_images_in_and_out(shape, generator):
    encoder, decoder = ImageEncoder(shape, 2), ImageDecoder(shape, 16, 6, 2, 8, 4)
    image = th.randint(0, 256, (2, *shape), generator=generator, dtype=th.uint8)
    assert encoder(image).shape == (2, encoder.outputs)
    out = decoder(th.randn((2, 16), generator=generator), th.randn((2, 6), generator=generator))
    assert out.shape == (2, *shape)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_an_image_that_is_too_small():
    with pytest.raises(ValueError, match="3 x 3 pixels is too small"):
        sides(3, 3)
