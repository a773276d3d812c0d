"""Base classes of known reward and termination functions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_mbrl.contracts import Obs

REGISTERED: dict[str, type["VectorFunction"]] = {}
"""The classes that can be saved as JSON values, by the name they are saved under"""


@dataclass(frozen=True)
class VectorFunction(ABC):
    """
    A known reward or termination of an environment with plain vector observations.

    Called with raw observations ``(B, D)``, actions in the environment's units ``(B, A)`` (discrete ones as integers ``(B,
    1)``) and next observations ``(B, D)``; returns ``(B,)``. Rewards are differentiable.

    A subclass is a frozen dataclass of plain fields: numbers, strings, ``None``, functions of this kind and tuples of these.
    With a name of its own, agents save it by that name and its fields (:mod:`sb3_mbrl.envs.known_functions.saving`)::

        @dataclass(frozen=True)
        class Parked(VectorFunction, saved_as="my-package:Parked"):
            speed: float

    The name must stay the same when the class is renamed or moved.
    """

    saved_as: ClassVar[str | None] = None
    """The name that the class is saved under; ``None``: it cannot be saved as JSON values. Subclasses do not inherit it."""

    def __init_subclass__(cls, *, saved_as: str | None = None, **kwargs: Any) -> None:
        """
        Register a subclass.

        :param saved_as: the name that it is saved under (``None``: it is not registered)
        :raises TypeError: for a name that another class has
        """
        super().__init_subclass__(**kwargs)
        cls.saved_as = saved_as
        if saved_as is None:
            return
        other = REGISTERED.setdefault(saved_as, cls)
        # The same class again, where its module is imported anew, replaces the old one.
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__}: the name {saved_as!r} is taken by "
                f"{other.__module__}.{other.__qualname__}; give another saved_as"
            )
        REGISTERED[saved_as] = cls

    def __call__(self, obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
        if isinstance(obs, dict) or isinstance(next_obs, dict):
            raise TypeError(
                f"{type(self).__name__} reads plain observations (B, D), not a dictionary; "
                "give a reward_fn or termination_fn of your own for this environment"
            )
        return self.compute(obs, action, next_obs)

    @abstractmethod
    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """Compute the values of a batch, ``(B,)``, from tensors."""


@dataclass(frozen=True)
class Never(VectorFunction, saved_as="Never"):
    """The termination of an environment that never terminates."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return th.zeros(next_obs.shape[:-1], dtype=th.bool, device=next_obs.device)


@dataclass(frozen=True)
class TerminationReward(VectorFunction, saved_as="TerminationReward"):
    """
    A reward that only depends on whether the step terminates.

    :param running: the reward of a step that does not terminate
    :param terminal: the reward of a step that terminates
    :param termination: the termination function
    """

    running: float
    terminal: float
    termination: VectorFunction

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        terminated = self.termination(obs, action, next_obs)
        return th.full_like(next_obs[..., 0], self.running).masked_fill(terminated, self.terminal)
