"""Training rollouts and what is computed from them: soft returns, and the bounds of values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.contracts import Obs


class TrainingRollout(NamedTuple):
    """``B`` rollouts of ``H`` steps of the policy in the world model, whose gradients are kept."""

    obs: Obs
    """The first observations, ``(B, ...)``"""
    action: th.Tensor
    """The first actions, scaled, ``(B, A)``"""
    rewards: th.Tensor
    """``r_t``, ``(H, B)``"""
    log_probs: th.Tensor
    """``log pi(a_t | s_t)``, ``(H + 1, B)``"""
    weights: th.Tensor
    """``gamma^t m_t``, ``(H + 1, B)``: the discount, weighted by the probability that the episode has not ended yet"""
    last_obs: Obs
    """The observations after ``H`` steps, ``(B, ...)``"""
    last_action: th.Tensor
    """The actions there, ``(B, A)``"""

    def returns(self, alpha: th.Tensor, last_value: th.Tensor, *, first_entropy: bool) -> th.Tensor:
        """
        Sum the rollouts' rewards and entropies, and the value at their end, ``(B,)``.

        :param alpha: the entropy coefficient
        :param last_value: the values of the last observations and actions, ``(B,)``
        :param first_entropy: whether the entropy of the first action counts (it does for the actor; the critics' value of a
            given action has none)
        """
        entropies = -alpha * self.log_probs
        if not first_entropy:
            entropies = th.cat([th.zeros_like(entropies[:1]), entropies[1:]])
        soft = th.cat([self.rewards, last_value[None]]) + entropies
        return (self.weights * soft).sum(0)


class ValueBounds(AgentObject):
    """
    The bounds of values: ``[low, high]`` are the 1 % and 99 % quantiles of soft rewards, over ``1 - gamma``, and move slowly.

    :param gamma: the discount of a step
    :param rate: the share of the way to a batch's quantiles that an update moves
    """

    def __init__(self, gamma: float, rate: float) -> None:
        self.gamma, self.rate = gamma, rate
        self.low, self.high = 0.0, 0.0
        self.known = False
        """Whether any batch has been seen"""
        self.episodes_end = False
        """Whether episodes may end early: values are 0 there, so the bounds include it"""

    def move(self, soft_rewards: th.Tensor) -> None:
        """
        Move towards the quantiles of a batch.

        :param soft_rewards: ``r - alpha log pi``, of any shape
        """
        probabilities = th.tensor([0.01, 0.99], device=soft_rewards.device)
        low, high = (soft_rewards.flatten().quantile(probabilities) / (1 - self.gamma)).tolist()
        if self.episodes_end:
            low, high = min(low, 0.0), max(high, 0.0)
        rate = self.rate if self.known else 1.0
        self.low += rate * (low - self.low)
        self.high += rate * (max(high, low + 1e-3) - self.high)
        self.known = True

    def state_dict(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "known": self.known, "episodes_end": self.episodes_end}

    def load_state_dict(self, state: Any) -> None:
        self.low, self.high, self.known = state["low"], state["high"], state["known"]
        self.episodes_end = state["episodes_end"]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no gradients reach the parameters of a module, which would be a third of the work of the backward pass."""
    changed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
