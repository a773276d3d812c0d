"""
Distributions over sequences of actions, in which planners search: Gaussians for numbers, categories for everything else.

The parameters of a distribution are a :data:`~sb3_mbrl.trees.State` with one row per environment, so that they can be carried
from one decision to the next.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import State, describe, tree_map

REWIDEN = 0.5
"""The share of the uniform distribution in the probabilities that are carried over, which widens them"""


class ActionDistribution(ABC):
    """
    A distribution over sequences of actions. It has no state: its parameters are passed in and returned.

    :param horizon: the number of steps of a sequence
    """

    size: int
    """The number of columns of an action (``A``)"""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    @abstractmethod
    def initial(self, rows: int, device: th.device) -> State:
        """Return the parameters to begin with, for ``rows`` environments."""

    @abstractmethod
    def warm(self, parameters: State) -> State:
        """Shift the parameters by one step for the next decision; the last step is unknown, and all are widened."""

    @abstractmethod
    def sample(self, parameters: State, n: int, generator: th.Generator | None, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw sequences.

        :param n: the number of sequences per environment
        :param noise: ``(B, n, H, A)`` to use instead of independent standard normal numbers, where these are what is drawn
        :return: ``(B, n, H, A)``
        """

    @abstractmethod
    def refit(self, parameters: State, actions: th.Tensor, weights: th.Tensor, momentum: float, width: bool = True) -> State:
        """
        Move the parameters towards some sequences.

        :param actions: ``(B, n, H, A)``
        :param weights: ``(B, n)``, which sum to 1
        :param momentum: the share of the old parameters
        :param width: whether the width follows too, or only the centre
        """

    @abstractmethod
    def mode(self, parameters: State) -> th.Tensor:
        """Return the most likely sequence, ``(B, H, A)``."""


class GaussianActions(ActionDistribution):
    """
    A distribution of independent normal numbers within [-1, 1], the scaled bounds.

    :param std: the standard deviation to begin with
    :param truncate: draw from a normal distribution cut at two standard deviations, with a width that keeps it within the
        bounds, as PETS does; else clip
    :param repeat_last: whether the last step of the next decision begins with the mean of the step before it, as in
        iCEM's code; else with zero, as in PETS's
    """

    def __init__(self, space: spaces.Box, horizon: int, std: float, truncate: bool, repeat_last: bool = False) -> None:
        super().__init__(horizon)
        self.size, self.std, self.truncate, self.repeat_last = int(np.prod(space.shape)), std, truncate, repeat_last

    def initial(self, rows: int, device: th.device) -> State:
        mean = th.zeros(rows, self.horizon, self.size, device=device)
        return {"mean": mean, "std": th.full_like(mean, self.std)}

    def warm(self, parameters: State) -> State:
        last = parameters["mean"][:, -1:]
        mean = th.cat([parameters["mean"][:, 1:], last if self.repeat_last else th.zeros_like(last)], dim=1)
        return {"mean": mean, "std": th.full_like(mean, self.std)}

    def sample(self, parameters: State, n: int, generator: th.Generator | None, noise: th.Tensor | None = None) -> th.Tensor:
        mean, std = parameters["mean"][:, None], parameters["std"][:, None]
        shape, device = (len(mean), n, self.horizon, self.size), mean.device
        if noise is None:
            if self.truncate:
                std = th.minimum(std, (1 - mean.abs()) / 2)
                uniform = th.rand(shape, generator=on_device(generator, device), device=device)
                noise = 2**0.5 * th.erfinv(uniform.clamp(1e-6, 1 - 1e-6) * (2 * _MASS) - _MASS)
            else:
                noise = th.randn(shape, generator=on_device(generator, device), device=device)
        return (mean + std * noise).clamp(-1, 1)

    def refit(self, parameters: State, actions: th.Tensor, weights: th.Tensor, momentum: float, width: bool = True) -> State:
        share = weights[:, :, None, None]
        mean = (share * actions).sum(1)
        variance = (share * (actions - mean[:, None]).square()).sum(1)
        new_mean = momentum * parameters["mean"] + (1 - momentum) * mean
        if not width:
            return {"mean": new_mean, "std": parameters["std"]}
        return {"mean": new_mean, "std": (momentum * parameters["std"].square() + (1 - momentum) * variance).sqrt()}

    def mode(self, parameters: State) -> th.Tensor:
        return parameters["mean"].clamp(-1, 1)


_MASS = float(th.erf(th.tensor(2**0.5)))
"""The probability that a standard normal number is within two standard deviations"""


class CategoricalActions(ActionDistribution):
    """
    A distribution of independent categories: one for ``Discrete``, several for ``MultiDiscrete`` and ``MultiBinary``.
    """

    def __init__(self, space: spaces.Space, horizon: int) -> None:
        super().__init__(horizon)
        if isinstance(space, spaces.Discrete):
            counts, first = [int(space.n)], [int(space.start)]
        elif isinstance(space, spaces.MultiDiscrete):
            counts, first = space.nvec.flatten().tolist(), np.asarray(space.start).flatten().tolist()
        elif isinstance(space, spaces.MultiBinary):
            counts, first = [2] * int(np.prod(space.shape)), [0] * int(np.prod(space.shape))
        else:
            raise UnsupportedSpace(f"Planners take Box, Discrete, MultiDiscrete and MultiBinary actions, not {space}")
        self.size, self.first = len(counts), th.tensor(first)
        exists = th.arange(max(counts)) < th.tensor(counts)[:, None]
        self.uniform = exists / th.tensor(counts)[:, None]
        """``(A, K)``"""

    def initial(self, rows: int, device: th.device) -> State:
        return {"probs": self.uniform.to(device).expand(rows, self.horizon, -1, -1).clone()}

    def warm(self, parameters: State) -> State:
        probs, uniform = parameters["probs"], self.uniform.to(parameters["probs"].device)
        shifted = th.cat([probs[:, 1:], uniform.expand_as(probs[:, :1])], dim=1)
        return {"probs": (1 - REWIDEN) * shifted + REWIDEN * uniform}

    def sample(self, parameters: State, n: int, generator: th.Generator | None, noise: th.Tensor | None = None) -> th.Tensor:
        probs = parameters["probs"]
        flat = probs.reshape(-1, probs.shape[-1])
        drawn = th.multinomial(flat, n, replacement=True, generator=on_device(generator, probs.device))
        return drawn.view(*probs.shape[:-1], n).permute(0, 3, 1, 2) + self.first.to(probs.device)

    def refit(self, parameters: State, actions: th.Tensor, weights: th.Tensor, momentum: float, width: bool = True) -> State:
        probs = parameters["probs"]
        chosen = th.nn.functional.one_hot(actions - self.first.to(probs.device), probs.shape[-1])
        share = (weights[:, :, None, None, None] * chosen).sum(1)
        return {"probs": momentum * probs + (1 - momentum) * share}

    def mode(self, parameters: State) -> th.Tensor:
        return parameters["probs"].argmax(-1) + self.first.to(parameters["probs"].device)


def make_action_distribution(
    space: spaces.Space, horizon: int, std: float = 0.5, truncate: bool = False, repeat_last: bool = False
) -> ActionDistribution:
    """
    Choose the distribution for a space of actions.

    :param space: the space of actions
    :param horizon: the number of steps of a sequence
    :param std: the standard deviation of scaled actions to begin with
    :param truncate: see :class:`GaussianActions`
    :param repeat_last: likewise
    :raises UnsupportedSpace: for other spaces, and for a ``Box`` without finite bounds
    """
    if isinstance(space, spaces.Box):
        refuse_unscalable(space)
        return GaussianActions(space, horizon, std, truncate, repeat_last)
    return CategoricalActions(space, horizon)


def refuse_unscalable(space: spaces.Box) -> None:
    """
    :raises UnsupportedSpace: for a ``Box`` without finite bounds, or with bounds that leave nothing to choose
    """
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UnsupportedSpace(
            f"The action space {space} has no finite bounds, so there is nothing to scale actions to. Wrap the environment in "
            "gymnasium.wrappers.RescaleAction or declare Box(low, high) with the limits of the actuator."
        )
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not (np.isfinite(width).all() and (width > 0).all()):
        raise UnsupportedSpace(
            f"The action space {space} cannot be scaled to [-1, 1]: from low to high there has to be a way, and one that "
            "single precision can hold. Leave out what cannot be moved, and declare Box(low, high) with the actuator's limits."
        )


def mask_first(parameters: State, mask: th.Tensor, distribution: ActionDistribution) -> State:
    """
    Forbid actions in the first step, the only one for which it is known what is allowed.

    :param mask: ``(B, n_actions)``
    """
    assert isinstance(distribution, CategoricalActions)
    probs = parameters["probs"].clone()
    allowed = probs[:, 0, 0] * mask
    share = allowed.sum(-1, keepdim=True)
    probs[:, 0, 0] = th.where(share > 0, allowed / share.clamp(min=1e-12), mask / mask.sum(-1, keepdim=True).clamp(min=1))
    return {"probs": probs}


def start(distribution: ActionDistribution, carry: State | None, is_first: th.Tensor, rows: int, device: th.device) -> State:
    """Return the parameters to begin with: those carried over, and new ones where an episode begins."""
    initial = distribution.initial(rows, device)
    if carry is None:
        return initial
    if describe(carry) != describe(initial):
        raise ValueError(
            f"The carry is {describe(carry)}, and this planner's are {describe(initial)}: it comes from another "
            "planner, horizon or number of environments. Begin anew, with state=None."
        )
    warm = distribution.warm(carry)

    def choose(new: th.Tensor, old: th.Tensor) -> th.Tensor:
        return th.where(is_first.to(device).view(-1, *[1] * (new.dim() - 1)), new, old)

    return tree_map(choose, initial, warm)
