"""Latent variables and their divergences against torch's distributions."""

import pytest
import torch as th
from torch import distributions as dist

from sb3_mbrl.networks.latents import CategoricalLatent, GaussianLatent, softmax


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_categories_against_torch(unimix, generator):
    latent = CategoricalLatent(3, 5, unimix)
    left, right = (3 * th.randn((4, 15), generator=generator) for _ in range(2))

    def reference(stats):
        probs = (1 - unimix) * stats.view(4, 3, 5).softmax(-1) + unimix / 5
        return dist.Independent(dist.OneHotCategorical(probs=probs), 1)

    divergence = latent.divergence(latent.distribution(left), latent.distribution(right))
    th.testing.assert_close(divergence, dist.kl_divergence(reference(left), reference(right)))
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
    divergence = latent.divergence(latent.distribution(left), latent.distribution(right))
    th.testing.assert_close(divergence, dist.kl_divergence(one, other))
    th.testing.assert_close(latent.entropy(left), one.entropy())
    draws = latent.sample(left.expand(20_000, 3, 8), generator)
    th.testing.assert_close(draws.mean(0), m1, atol=0.05, rtol=0)
    th.testing.assert_close(draws.std(0), s1, atol=0.05, rtol=0)
    expected = th.nn.functional.softplus(left[:, 4:]) if std == "softplus" else 2 * th.sigmoid(left[:, 4:] / 2)
    th.testing.assert_close(s1, expected + 0.1)
