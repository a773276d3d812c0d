"""Latent variables and their divergences against torch's distributions."""

import math

import pytest
import torch as th
from torch import distributions as dist

from sb3_mbrl.networks.latents import (
    CategoricalLatent,
    GaussianLatent,
    balanced_kl,
    joint_kl,
    one_sided_kl,
    softmax,
    split_kl,
)


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
