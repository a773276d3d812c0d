"""What actor and critic learn from: imagined trajectories, and replayed ones (DreamerV3, actor and critic learning)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch as th

from sb3_mbrl.networks.actions import ActionOutput
from sb3_mbrl.networks.outputs import Output
from sb3_mbrl.returns import ReturnScale, lambda_returns


class Imagined(NamedTuple):
    """``N`` trajectories of ``H`` steps."""

    features: th.Tensor
    """``(N, H + 1, F)``"""
    action: th.Tensor
    """``(N, H, A)``"""
    returns: th.Tensor
    """``(N, H)``: lambda-returns"""
    advantage: th.Tensor
    """``(N, H)``: returns above the critic's value, in units of the returns' scale"""
    weight: th.Tensor
    """``(N, H)``: the probability that the state is reached at all, discounts included"""


def by_step(features: th.Tensor) -> th.Tensor:
    """``(N, H + 1, F)`` as ``(H + 1, N, F)``: as :meth:`RSSM.imagine` puts them into memory, where slices need no copy."""
    return features.transpose(0, 1)


def worth(
    features: th.Tensor,
    action: th.Tensor,
    reward: th.Tensor,
    goes_on: th.Tensor,
    value: th.Tensor,
    lam: float,
    scale: ReturnScale,
) -> Imagined:
    """
    Judge imagined trajectories. Gradients flow through returns and advantages where they flow through rewards and values.

    :param features: ``(N, H + 1, F)``
    :param action: ``(N, H, A)``
    :param reward: ``(N, H + 1)``: of arriving
    :param goes_on: ``(N, H + 1)``: discounts
    :param value: ``(N, H + 1)``: the critic's own, not its slow copy's (``slowtar: False`` in DreamerV3's code)
    :param lam: of the lambda-returns
    :param scale: takes note of these returns
    """
    returns = lambda_returns(reward, goes_on, value, lam)
    scale.update(returns)
    advantage = (returns - value[:, :-1].detach()) / scale()
    return Imagined(features, action, returns, advantage, goes_on.detach().cumprod(1)[:, :-1])


def actor_loss(
    output: ActionOutput, outs: Sequence[th.Tensor], imagined: Imagined, ent_coef: float, pathwise: bool = False
) -> tuple[th.Tensor, th.Tensor]:
    """
    REINFORCE with a baseline and an entropy bonus, for numbers and categories alike.

    :param output: of the actor
    :param outs: its numbers for all states but the last, step by step, in pieces of any size: ``(H * N, size)`` altogether
    :param pathwise: the advantage's own gradient instead, back through the dynamics to the actions (DreamerV1; V3 in 2023 for
        numbers)
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
    output: Output, outs: Sequence[th.Tensor], returns: th.Tensor, calm: th.Tensor, slow_scale: float = 1.0
) -> th.Tensor:
    """
    Towards the returns, and towards the prediction of the critic's slow copy.

    :param output: of the critic
    :param outs: its numbers, piece by piece (:func:`~sb3_mbrl.networks.layers.pieces`): ``(B, size)`` altogether
    :param returns: of as many states, ``(...)``
    :param calm: ``(...)``: the slow copy's prediction
    :param slow_scale: of the second part
    """
    sizes, found = [len(out) for out in outs], []
    for out, *targets in zip(outs, returns.flatten().split(sizes), calm.flatten().split(sizes), strict=True):
        to_returns, to_calm = output.losses(out, *targets)
        found.append(to_returns + slow_scale * to_calm)
    return th.cat(found).view(returns.shape)


def replayed_returns(
    reward: th.Tensor, terminated: th.Tensor, is_last: th.Tensor, boot: th.Tensor, gamma: float, lam: float
) -> th.Tensor:
    """
    Lambda-returns of real sequences, whose values are those that imagination found from each state.

    :param reward: ``(B, K)``
    :param terminated: ``(B, K)``
    :param is_last: ``(B, K)``
    :param boot: ``(B, K)``: the first imagined return from each state
    :return: ``(B, K - 1)``
    """
    return lambda_returns(reward, (1 - terminated) * gamma, boot, lam, is_last)


@contextmanager
def frozen(*modules: th.nn.Module) -> Iterator[None]:
    """What is computed meanwhile has gradients through these modules, and none into them."""
    changed = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@th.no_grad()
def follow(slow: th.nn.Module, fast: th.nn.Module, rate: float) -> None:
    """Move the slow copy a little towards the original."""
    th._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), rate)
