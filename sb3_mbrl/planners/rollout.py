"""The expected returns of sequences of actions in a world model, many sequences at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.trees import State, finite_rows, tree_repeat, tree_where

StateValue = Callable[[State], th.Tensor]
"""A value function ``value(state)``: from ``n`` states of the model to values ``(n,)``"""

Prior = Callable[[State, th.Generator | None], th.Tensor]
"""A policy ``prior(state, generator)``: from ``B`` states of the model to scaled actions ``(B, A)``"""


class Evaluation(NamedTuple):
    """The result of :func:`evaluate`."""

    returns: th.Tensor
    """``(B, N)``: the expected return; minus infinity where the rollout diverged, so that it can never win"""
    diverged: th.Tensor
    """``(B, N)`` booleans: whether a value was not finite before the episode had ended for certain"""


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
    Roll sequences of actions out in a model, and sum their rewards.

    With the reward ``r_t`` and the probability of termination ``d_t`` of step ``t``, the value ``V`` and the horizon ``H``::

        return = sum_t w_t r_t + w_H V(s_H)        w_0 = 1,  w_{t+1} = w_t gamma (1 - d_t)

    The weight ``w_t`` is the discount times the probability that the episode has not ended before step ``t``. A model that
    predicts discounts ``g_t`` replaces ``gamma (1 - d_t)`` by them. Differentiable with respect to the actions where the model
    is.

    :param model: the world model
    :param state: the states of the environments, ``(B, ...)``
    :param actions: ``(B, N, H, A)``: ``N`` sequences for each environment
    :param gamma: the discount of a step
    :param value: the value function of the last states, ``(B * N,)``
    :param deterministic: whether to follow the model's mean
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
        # A weight of 0 means that the episode has ended for certain: what the model predicts after that has no effect.
        diverged = diverged | (~finite & (weight != 0))
        ok = finite & ~diverged
        # th.where and not a product: 0 * NaN would be NaN.
        total = total + th.where(ok, weight * prediction.reward, 0.0)
        survives = gamma * (1 - prediction.terminated) if prediction.discount is None else prediction.discount
        weight = th.where(ok, weight * survives, 0.0)
        state = tree_where(ok, prediction.state, state)  # a diverged rollout keeps its last finite state
    if value is not None:
        last = value(state)
        diverged = diverged | (~last.isfinite() & (weight != 0))
        total = total + th.where(last.isfinite(), weight * last, 0.0)
    diverged = diverged | ~total.isfinite()  # finite rewards whose sum overflows single precision
    total = total.masked_fill(diverged, -th.inf)
    return Evaluation(total.view(rows, candidates), diverged.view(rows, candidates))


@th.no_grad()
def rollout_prior(
    model: WorldModel, state: State, prior: Prior, candidates: int, horizon: int, generator: th.Generator | None
) -> th.Tensor:
    """
    Roll a policy out in the model, ``candidates`` times from every state, and return its actions.

    :param model: the world model
    :param state: the states to start from, ``(B, ...)``
    :param prior: the policy; its actions are clipped to [-1, 1] where they are floats
    :param candidates: the number of rollouts per state
    :param horizon: the number of steps
    :param generator: the source of the policy's and the model's randomness
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
