"""Rollouts of many sequences of actions, or of a prior policy, in a world model."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.trees import State, finite_rows, tree_repeat, tree_where

StateValue = Callable[[State], th.Tensor]
Prior = Callable[[State, th.Generator | None], th.Tensor]
"""``prior(state, generator)``: scaled actions ``(B, A)``"""


class Evaluation(NamedTuple):
    """The result of :func:`evaluate`."""

    returns: th.Tensor
    """``(B, N)``: the expected return; minus infinity where the rollout diverged, so that it can never win"""
    diverged: th.Tensor
    """``(B, N)`` booleans: something was not finite before the episode had ended for certain"""


def evaluate(
    model: WorldModel,
    state: State,
    actions: th.Tensor,
    *,
    gamma: float = 1.0,
    value: StateValue | None = None,
    deterministic: bool = False,
    generator: th.Generator | None = None,
) -> Evaluation:
    """
    Compute returns: sums of rewards, each weighted by the probability that the episode has not ended before (times ``gamma``
    per step), or by the discounts of a model that predicts them.

    Differentiable with respect to the actions where the model is.

    :param model: the world model
    :param state: where each environment is, ``(B, ...)``
    :param actions: ``(B, N, H, A)``: ``N`` sequences for each
    :param gamma: discount per step
    :param value: of the last states, ``(B * N,)``
    :param deterministic: follow the model's mean
    :param generator: the source of the model's randomness
    """
    rows, candidates, horizon, size = actions.shape
    state = tree_repeat(state, candidates)
    flat = actions.reshape(rows * candidates, horizon, size)
    weight = th.ones(len(flat), device=actions.device)
    total = th.zeros_like(weight)
    diverged = th.zeros_like(weight, dtype=th.bool)
    for t in range(horizon):
        prediction = model.step(state, flat[:, t], deterministic=deterministic, generator=generator)
        finite = finite_rows((prediction.state, prediction.reward, prediction.terminated, prediction.discount))
        diverged = diverged | (~finite & (weight != 0))
        ok = finite & ~diverged
        total = total + th.where(ok, weight * prediction.reward, 0.0)
        survives = gamma * (1 - prediction.terminated) if prediction.discount is None else prediction.discount
        weight = th.where(ok, weight * survives, 0.0)
        state = tree_where(ok, prediction.state, state)
    if value is not None:
        last = value(state)
        diverged = diverged | (~last.isfinite() & (weight != 0))
        total = total + th.where(last.isfinite(), weight * last, 0.0)
    diverged = diverged | ~total.isfinite()  # a sum that is beyond what can be held
    total = total.masked_fill(diverged, -th.inf)
    return Evaluation(total.view(rows, candidates), diverged.view(rows, candidates))


@th.no_grad()
def rollout_prior(
    model: WorldModel, state: State, prior: Prior, candidates: int, horizon: int, generator: th.Generator | None
) -> th.Tensor:
    """
    Follow a policy along ``candidates`` rollouts of the model from every state, and return its actions.

    :param prior: the policy
    :return: ``(B, candidates, horizon, A)``
    """
    state = tree_repeat(state, candidates)
    actions = []
    for _ in range(horizon):
        action = prior(state, generator)
        action = action.clamp(-1.0, 1.0) if action.is_floating_point() else action
        actions.append(action)
        prediction = model.step(state, action, generator=generator)
        state = tree_where(finite_rows(prediction.state), prediction.state, state)
    stacked = th.stack(actions, dim=1)
    return stacked.view(len(stacked) // candidates, candidates, horizon, -1)
