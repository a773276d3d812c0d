"""
The divergence between posterior and prior as a loss: PlaNet's, DreamerV1's, V2's and V3's.

All four are made of the same two numbers per step, with ``sg`` the stop-gradient::

    dynamics       = KL(sg(posterior) || prior)      moves the prior towards the posterior
    representation = KL(posterior || sg(prior))      moves the posterior towards the prior

Their values are equal, and their gradients add up to that of the plain ``KL(posterior || prior)``. Free nats are an amount of
divergence that costs nothing: below it, the gradient is zero.
"""

from typing import NamedTuple

import torch as th

from sb3_mbrl.networks.latents import Latent


class KLParts(NamedTuple):
    """The same divergences twice, ``(...)`` each, in nats; each has the gradient of one of the two distributions."""

    dynamics: th.Tensor
    """``KL(sg(posterior) || prior)``: its gradient moves the prior alone"""
    representation: th.Tensor
    """``KL(posterior || sg(prior))``: its gradient moves the posterior alone"""


def kl_parts(latent: Latent, posterior: th.Tensor, prior: th.Tensor) -> KLParts:
    """
    Compute ``KL(posterior || prior)`` once for each of the two distributions to move.

    :param latent: the family of both distributions
    :param posterior: its parameters ``(..., size)``, given the observation
    :param prior: its parameters ``(..., size)``, without the observation
    """
    left, right = latent.distribution(posterior), latent.distribution(prior)
    return KLParts(
        dynamics=latent.divergence(_stop_gradient(left), right),
        representation=latent.divergence(left, _stop_gradient(right)),
    )


def _stop_gradient(distribution: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
    return tuple(parameter.detach() for parameter in distribution)


def split_kl(parts: KLParts, *, free: float = 1.0) -> KLParts:
    """
    Compute DreamerV3's two losses, ``max(free, KL)`` per step, which the caller weights separately.

    :param free: the free nats per step
    :return: dynamics loss and representation loss, ``(...)`` each
    """
    return KLParts(*(part.clamp(min=free) for part in parts))


def balanced_kl(parts: KLParts, *, balance: float = 0.8, free: float = 0.0) -> th.Tensor:
    """
    Compute DreamerV2's loss (algorithm 2): ``balance * dynamics + (1 - balance) * representation``. A scalar.

    :param balance: the share of the loss that moves the prior
    :param free: the free nats of the mean divergence
    """
    dynamics, representation = (part.mean().clamp(min=free) for part in parts)
    return balance * dynamics + (1 - balance) * representation


def joint_kl(parts: KLParts, *, free: float = 3.0, per_step: bool = False) -> th.Tensor:
    """
    Compute the loss of PlaNet or DreamerV1: one divergence that moves both distributions. A scalar.

    :param free: the free nats
    :param per_step: PlaNet's ``mean(max(0, KL - free))``; else DreamerV1's ``max(mean(KL), free)``
    """
    # Plainly: KL(posterior || prior), without any stop-gradient. It is made of the two parts at hand: their sum has the right
    # gradient and twice the value, so one value is taken off again.
    divergence = parts.dynamics + parts.representation - parts.representation.detach()
    return (divergence - free).clamp(min=0.0).mean() if per_step else divergence.mean().clamp(min=free)
