"""
Measures of the uncertainty of a step, from the predictions of an ensemble's members.

Every member ``e`` predicts a Gaussian with independent columns, ``N(mu_e, var_e)``, for the next observation. Its variance is
the noise of the environment (*aleatoric*); the difference between members is what the model does not know (*epistemic*).
Columns count alike: all measures but :func:`largest_deviation` and :func:`joint_deviation` stay the same if a column is
measured in other units.
"""

from typing import NamedTuple

import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MemberPrediction, WorldModel
from sb3_mbrl.spaces import ActionCodec, torch_dtype

ALONE = "A single member cannot disagree: give the ensemble members=2 or more, and as many elites"
CERTAIN = "The members predict no variance, which the rule compares: give the ensemble probabilistic=True"

LEAST_VARIANCE = 1e-10
"""The smallest variance in a quotient: constant columns, in which all members agree, then add nothing"""


def check_members(world_model: WorldModel, *, noise: bool, least: int = 2) -> None:
    """
    Refuse an ensemble that a rule cannot compare.

    :param world_model: a model with members, not yet fitted
    :param noise: whether its members must predict variances
    :param least: the least number of members in use
    :raises ValueError: for fewer members, or members without noise
    """
    if world_model.n_choices < least:
        raise ValueError(ALONE)
    space, codec = world_model.observation_space, ActionCodec(world_model.action_space)
    if noise and isinstance(space, spaces.Box):
        obs = th.zeros(1, *space.shape, dtype=torch_dtype(space.dtype), device=world_model.device)
        with th.no_grad():
            members = world_model.members(world_model.initial(obs), codec.neutral()[None].to(world_model.device))
        if not bool((members.variance > 0).any()):
            raise ValueError(CERTAIN)


def variances(members: MemberPrediction) -> th.Tensor:
    """
    Return the members' variances, ``(E, B, D)``, at least :data:`LEAST_VARIANCE`.

    :raises ValueError: if there is one member alone, or none has any noise
    """
    if len(members.mean) < 2:
        raise ValueError(ALONE)
    if not bool((members.variance > 0).any()):
        raise ValueError(CERTAIN)
    return members.variance.clamp(min=LEAST_VARIANCE)


def pairwise_divergence(members: MemberPrediction) -> th.Tensor:
    """
    Compute the geometric Jensen-Shannon divergence of the members, the mean over all pairs, ``(B,)`` (MACURA, Frauenknecht et
    al. 2024).

    Of two Gaussians ``p`` and ``q`` it is ``KL(g, p) / 2 + KL(g, q) / 2`` with their normalised geometric mean ``g``, whose
    precision is the mean of both precisions, and whose mean is weighted by them (the dual form, which the authors compute).
    Per column::

        1/var_g = (1/var_p + 1/var_q) / 2          mu_g = var_g (mu_p / var_p + mu_q / var_q) / 2
        GJS = ((mu_p^2 / var_p + mu_q^2 / var_q) / 2 - mu_g^2 / var_g + (log var_p + log var_q) / 2 - log var_g) / 2
            = (mu_p - mu_q)^2 / (4 (var_p + var_q)) + log((var_p + var_q) / (2 sqrt(var_p var_q))) / 2
    """
    mean, variance = members.mean, variances(members)
    first, second = th.triu_indices(len(mean), len(mean), offset=1, device=mean.device)
    p, q = variance[first], variance[second]
    apart = (mean[first] - mean[second]).square() / (4 * (p + q))
    widths = ((p + q) / (2 * (p * q).sqrt())).log() / 2
    return (apart + widths).sum(-1).mean(0)


def one_against_rest(members: MemberPrediction, member: th.Tensor) -> th.Tensor:
    """
    Compute the Kullback-Leibler divergence of one member's Gaussian from the rest's, ``(B,)`` (M2AC, Pan et al. 2020).

    The rest's Gaussian has the mean and the variance of the mixture of all other members (the law of total variance)::

        KL = sum over columns of (log(var_r / var_e) - 1 + (var_e + (mu_e - mu_r)^2) / var_r) / 2

    :param members: the predictions
    :param member: the member of each row, ``(B,)``
    """
    mean, variance = members.mean, variances(members)
    chosen = th.arange(len(mean), device=mean.device)[:, None] == member.to(mean.device)
    others = (~chosen).to(mean.dtype)[..., None] / (len(mean) - 1)
    rest = (others * mean).sum(0)
    rest_variance = (others * (variance + (mean - rest).square())).sum(0)
    row = th.arange(mean.shape[1], device=mean.device)
    own, own_variance = mean[member, row], variance[member, row]
    spread = (own_variance + (own - rest).square()) / rest_variance
    return ((rest_variance / own_variance).log() - 1 + spread).sum(-1) / 2


def largest_deviation(members: MemberPrediction) -> th.Tensor:
    """
    Compute the largest norm, over members, of the standard deviations of the next observation, ``(B,)``, in the units of
    observations (MOPO, Yu et al. 2020, ``max_e ||Sigma_e(s, a)||_F`` of the square root of the covariance).
    """
    return members.variance.sum(-1).sqrt().amax(0)


def joint_deviation(members: MemberPrediction) -> th.Tensor:
    """
    Compute the standard deviation of the outcome over members and their noise together, ``(B,)``: the mean over columns of the
    next observation's, plus the reward's over members (WIMLE), in the units of observations and rewards.
    """
    variance = members.variance.mean(0) + members.mean.var(0, correction=0)
    return variance.sqrt().mean(-1) + members.reward.std(0, correction=0)


class Fused(NamedTuple):
    """The fusion of all members' predictions (Infoprop, Frauenknecht et al. 2025), ``(B, D)`` each."""

    mean: th.Tensor
    """The precision-weighted mean"""
    variance: th.Tensor
    """The environment's noise: the harmonic mean of the members' variances"""
    gain: th.Tensor
    """The Kalman gain ``K``: the share of the noise in noise and disagreement together. 1: the members agree"""

    @property
    def lost(self) -> th.Tensor:
        """The variance ``(1 - K) var`` that remains after a member's draw is known: what its draw did not tell"""
        return (1 - self.gain) * self.variance


def fuse(members: MemberPrediction) -> Fused:
    """
    Fuse the members' predictions::

        1/var = mean_e 1/var_e      mu = var mean_e (mu_e / var_e)      dis = mean_e (mu_e - mu)^2      K = var / (var + dis)
    """
    # Relative to the first member: rounding of large means would look like disagreement.
    mean, variance = members.mean - members.mean[0], variances(members)
    fused_variance = 1 / (1 / variance).mean(0)
    fused = fused_variance * (mean / variance).mean(0)
    disagreement = (mean - fused).square().mean(0)
    return Fused(members.mean[0] + fused, fused_variance, fused_variance / (fused_variance + disagreement))
