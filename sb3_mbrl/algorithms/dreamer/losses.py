"""
The losses of actor and critic, on imagined and on replayed trajectories (DreamerV3, section 'Critic learning' and 'Actor
learning').
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch as th

from sb3_mbrl.networks.actions import ActionOutput
from sb3_mbrl.networks.outputs import Output
from sb3_mbrl.returns import ReturnScale, lambda_returns


class Trajectories(NamedTuple):
    """
    A batch of ``N`` imagined trajectories of ``H`` steps, with their returns.

    :param features: the features of the states, ``(N, H + 1, F)``
    :param action: the actions in all states but the last, ``(N, H, A)``
    :param returns: the lambda-returns of all states but the last, ``(N, H)``
    :param advantage: the returns above the critic's value, in units of the returns' scale, ``(N, H)``
    :param weight: the probability that a state is reached at all, discounts included, ``(N, H)``
    """

    features: th.Tensor
    action: th.Tensor
    returns: th.Tensor
    advantage: th.Tensor
    weight: th.Tensor


def by_step(features: th.Tensor) -> th.Tensor:
    """View ``(N, H + 1, F)`` as ``(H + 1, N, F)``: the memory layout of :meth:`RSSM.imagine`, where slices need no copy."""
    return features.transpose(0, 1)


def evaluate(
    features: th.Tensor,
    action: th.Tensor,
    reward: th.Tensor,
    discount: th.Tensor,
    value: th.Tensor,
    lam: float,
    scale: ReturnScale,
) -> Trajectories:
    """
    Compute the returns and advantages of imagined trajectories. Gradients flow through them where they flow through rewards
    and values.

    :param features: the features of the states, ``(N, H + 1, F)``
    :param action: the actions in all states but the last, ``(N, H, A)``
    :param reward: the reward of arriving in each state, ``(N, H + 1)``
    :param discount: the discount of each state, ``(N, H + 1)``
    :param value: the critic's values, not its slow copy's (``slowtar: False`` in DreamerV3's code), ``(N, H + 1)``
    :param lam: the lambda of the lambda-returns
    :param scale: the scale of returns, which is updated with these
    """
    returns = lambda_returns(reward, discount, value, lam)
    scale.update(returns)
    advantage = (returns - value[:, :-1].detach()) / scale()
    return Trajectories(features, action, returns, advantage, discount.detach().cumprod(1)[:, :-1])


def actor_loss(
    output: ActionOutput, outs: Sequence[th.Tensor], imagined: Trajectories, ent_coef: float, pathwise: bool = False
) -> tuple[th.Tensor, th.Tensor]:
    """
    Compute the actor's loss: REINFORCE with a baseline and an entropy bonus, for continuous and discrete actions alike.

    :param output: the distribution of the actor's outputs
    :param outs: the actor's outputs for all states but the last, step by step, in chunks of any size: ``(H * N, size)``
        altogether
    :param imagined: the trajectories
    :param ent_coef: the weight of the entropy
    :param pathwise: whether to use the advantage's own gradient instead, back through the dynamics to the actions (DreamerV1;
        V3 in 2023 for continuous actions)
    :return: the loss of every state, and the entropy of its actions, ``(N, H)`` each
    """
    steps_first = imagined.advantage.T.shape
    entropy = th.cat([output.entropy(out) for out in outs]).view(steps_first).T
    gain = imagined.advantage
    if not pathwise:
        actions = by_step(imagined.action).flatten(0, 1).split([len(out) for out in outs])
        log_probs = [output.log_prob(out, action) for out, action in zip(outs, actions, strict=True)]
        gain = th.cat(log_probs).view(steps_first).T * imagined.advantage
    return -imagined.weight * (gain + ent_coef * entropy), entropy


def critic_loss(
    output: Output, outs: Sequence[th.Tensor], returns: th.Tensor, slow_value: th.Tensor, slow_scale: float = 1.0
) -> th.Tensor:
    """
    Compute the critic's loss towards the returns, and towards the prediction of its slow copy.

    :param output: the distribution of the critic's outputs
    :param outs: the critic's outputs, chunk by chunk (:func:`~sb3_mbrl.networks.layers.chunks`): ``(B, size)`` altogether
    :param returns: the targets, ``(...)``
    :param slow_value: the slow copy's predictions, ``(...)``
    :param slow_scale: the weight of the second part
    """
    sizes, losses = [len(out) for out in outs], []
    for out, *targets in zip(outs, returns.flatten().split(sizes), slow_value.flatten().split(sizes), strict=True):
        to_returns, to_slow = output.losses(out, *targets)
        losses.append(to_returns + slow_scale * to_slow)
    return th.cat(losses).view(returns.shape)


def replayed_returns(
    reward: th.Tensor, terminated: th.Tensor, is_last: th.Tensor, boot: th.Tensor, gamma: float, lam: float
) -> th.Tensor:
    """
    Compute lambda-returns of real sequences, bootstrapped with the imagined returns from each state.

    :param reward: the reward of arriving in each state, ``(B, K)``
    :param terminated: whether the episode terminated in each state, ``(B, K)``
    :param is_last: whether the episode is over in each state, ``(B, K)``
    :param boot: the first imagined return from each state, ``(B, K)``
    :param gamma: the discount of a step
    :param lam: the lambda of the lambda-returns
    :return: the returns of all states but the last, ``(B, K - 1)``
    """
    return lambda_returns(reward, (1 - terminated) * gamma, boot, lam, is_last)


@contextmanager
def frozen(*modules: th.nn.Module) -> Iterator[None]:
    """Let gradients flow through these modules, but not into their parameters."""
    changed = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@th.no_grad()
def polyak_update(slow: th.nn.Module, fast: th.nn.Module, tau: float) -> None:
    """
    Move a slow copy towards its original: ``slow <- (1 - tau) slow + tau fast``.

    SB3's ``polyak_update`` does this parameter by parameter; here all of them are moved in one fused operation, which a CUDA
    graph can capture.
    """
    th._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), tau)
