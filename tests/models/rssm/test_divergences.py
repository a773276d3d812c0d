"""The losses of the divergence between posterior and prior, by hand."""

import math

import pytest
import torch as th

from sb3_mbrl.models.rssm.divergences import balanced_kl, joint_kl, kl_parts, split_kl
from sb3_mbrl.networks.latents import CategoricalLatent, GaussianLatent


@pytest.mark.parametrize("latent", [CategoricalLatent(3, 5), GaussianLatent(4)])
def test_both_parts_are_the_divergence(latent, generator):
    posterior, prior = (th.randn((4, latent.size), generator=generator) for _ in range(2))
    for part in kl_parts(latent, posterior, prior):
        th.testing.assert_close(part, latent.divergence(latent.distribution(posterior), latent.distribution(prior)))


def test_divergences_below_the_free_nats_move_nothing():
    latent = CategoricalLatent(1, 2, 0.0)
    post, prior = th.tensor([[0.1, 0.0]], requires_grad=True), th.zeros(1, 2, requires_grad=True)
    for loss in split_kl(kl_parts(latent, post, prior)):
        assert float(loss) == 1.0
        loss.sum().backward()
    assert post.grad is None or not post.grad.any()
    assert prior.grad is None or not prior.grad.any()


def test_which_distribution_each_divergence_moves():
    latent = CategoricalLatent(1, 2, 0.0)

    def gradients(make):
        post, prior = th.tensor([[9.0, 0.0]], requires_grad=True), th.tensor([[0.0, 9.0]], requires_grad=True)
        make(post, prior).sum().backward()
        zero = th.zeros(1, 2)
        return tuple(zero if x.grad is None else x.grad for x in (post, prior))

    dynamics = gradients(lambda a, b: split_kl(kl_parts(latent, a, b))[0])
    representation = gradients(lambda a, b: split_kl(kl_parts(latent, a, b))[1])
    assert not dynamics[0].any()
    assert dynamics[1].any()
    assert representation[0].any()
    assert not representation[1].any()
    both = gradients(lambda a, b: joint_kl(kl_parts(latent, a, b)))
    mixed = gradients(lambda a, b: balanced_kl(kl_parts(latent, a, b), balance=0.8))
    for i in range(2):
        th.testing.assert_close(mixed[i], 0.8 * dynamics[i] + 0.2 * representation[i])
        th.testing.assert_close(both[i], dynamics[i] + representation[i])


def test_planets_and_dreamers_free_nats_by_hand():
    latent = GaussianLatent(1, min_std=0.0)
    width = math.log(math.e - 1)  # softplus: 1
    post, prior = th.tensor([[1.0, width], [4.0, width]]), th.tensor([[0.0, width]] * 2)
    th.testing.assert_close(kl_parts(latent, post, prior)[0], th.tensor([0.5, 8.0]))
    assert float(joint_kl(kl_parts(latent, post, prior), free=3.0)) == pytest.approx(4.25)
    assert float(joint_kl(kl_parts(latent, post, prior), free=3.0, per_step=True)) == pytest.approx(2.5)
    assert float(joint_kl(kl_parts(latent, post, prior), free=5.0)) == 5.0
