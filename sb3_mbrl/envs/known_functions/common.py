"""Base classes of known reward and termination functions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch as th

from sb3_mbrl.contracts import Obs


@dataclass(frozen=True)
class VectorFunction(ABC):
    """
    A known reward or termination of an environment with plain vector observations. Subclasses have plain fields, so that they
    pickle.

    Called with raw observations ``(B, D)``, actions in the environment's units ``(B, A)`` (discrete ones as integers ``(B,
    1)``) and next observations ``(B, D)``; returns ``(B,)``. Rewards are differentiable.
    """

    def __call__(self, obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
        if isinstance(obs, dict) or isinstance(next_obs, dict):
            raise TypeError(
                f"{type(self).__name__} reads plain observations (B, D), not a dictionary; "
                "give a reward_fn or termination_fn of your own for this environment"
            )
        return self.compute(obs, action, next_obs)

    @abstractmethod
    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """``(B,)``, from tensors."""


@dataclass(frozen=True)
class Never(VectorFunction):
    """The environment does not terminate."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return th.zeros(next_obs.shape[:-1], dtype=th.bool, device=next_obs.device)


@dataclass(frozen=True)
class TerminationReward(VectorFunction):
    """
    A reward that only depends on whether the step terminates.

    :param running: the reward of a step that does not
    :param terminal: the reward of a step that does
    :param termination: the termination function
    """

    running: float
    terminal: float
    termination: VectorFunction

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        terminated = self.termination(obs, action, next_obs)
        return th.full_like(next_obs[..., 0], self.running).masked_fill(terminated, self.terminal)
