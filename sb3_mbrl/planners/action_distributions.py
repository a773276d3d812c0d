"""
Distributions over sequences of actions, from which planners draw: Gaussian for continuous actions, categorical for all others.

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
"""The share of the uniform distribution in categorical parameters that are carried over to the next decision"""


class ActionDistribution(ABC):
    """
    A distribution over sequences of actions, one for each environment. It holds no parameters: they are passed in and out.

    :param horizon: the number of steps of a sequence
    """

    size: int
    """The number of columns of an action (``A``)"""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    @abstractmethod
    def initial(self, rows: int, device: th.device) -> State:
        """Return the parameters at the beginning of an episode."""

    @abstractmethod
    def warm(self, parameters: State) -> State:
        """Return the parameters at the beginning of the next decision: shifted by one step, and wide again."""

    @abstractmethod
    def sample(self, parameters: State, n: int, generator: th.Generator | None, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw ``n`` sequences for every environment.

        :param parameters: the parameters of the distribution
        :param n: the number of sequences
        :param generator: the source of randomness
        :param noise: ``(B, n, H, A)``: numbers to use instead of independent standard normal ones, where actions are
            continuous
        :return: ``(B, n, H, A)``
        """

    @abstractmethod
    def refit(self, parameters: State, actions: th.Tensor, weights: th.Tensor, momentum: float, width: bool = True) -> State:
        """
        Fit the parameters to weighted sequences.

        :param parameters: the old parameters
        :param actions: ``(B, n, H, A)``
        :param weights: ``(B, n)``, which sum to 1
        :param momentum: the share of the old parameters in the new ones
        :param width: whether to fit the width too, or only the centre
        """

    @abstractmethod
    def mode(self, parameters: State) -> th.Tensor:
        """Return the most likely sequences, ``(B, H, A)``."""


class GaussianActions(ActionDistribution):
    """
    Independent normal distributions of actions scaled to [-1, 1].

    The parameters are ``mean`` and ``std``, ``(B, H, A)`` each.

    :param space: the action space
    :param horizon: the number of steps of a sequence
    :param std: the initial standard deviation
    :param truncate: whether to draw from normal distributions truncated at two standard deviations, narrow enough to stay
        within the bounds, as PETS does; else normal numbers are clipped
    :param repeat_last: whether the last step of the next decision begins with the mean of the last step of this one, as in
        iCEM's code; else it begins with 0, as in PETS's
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
                # Two standard deviations reach at most from the mean to the nearer bound: mean +- 2 std stays within [-1, 1].
                std = th.minimum(std, (1 - mean.abs()) / 2)
                # A standard normal distribution truncated to [-2, 2], by inverting its distribution function:
                # z = sqrt(2) erfinv((2u - 1) P), with u uniform in (0, 1) and P = P(|z| < 2).
                uniform = th.rand(shape, generator=on_device(generator, device), device=device)
                noise = 2**0.5 * th.erfinv(uniform.clamp(1e-6, 1 - 1e-6) * (2 * _MASS) - _MASS)
            else:
                noise = th.randn(shape, generator=on_device(generator, device), device=device)
        return (mean + std * noise).clamp(-1, 1)

    def refit(self, parameters: State, actions: th.Tensor, weights: th.Tensor, momentum: float, width: bool = True) -> State:
        # With the weights w_i, actions a_i and momentum m:
        #   mean <- m mean + (1 - m) sum_i w_i a_i
        #   std^2 <- m std^2 + (1 - m) sum_i w_i (a_i - sum_j w_j a_j)^2
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
"""The probability mass of a normal distribution within two standard deviations, ``erf(2 / sqrt(2))``"""


class CategoricalActions(ActionDistribution):
    """
    Independent categorical distributions: one per action for ``Discrete``, several for ``MultiDiscrete`` and ``MultiBinary``.

    The parameters are ``probs``, ``(B, H, A, K)``, with ``K`` the largest number of categories.

    :param space: the action space
    :param horizon: the number of steps of a sequence
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
        """The uniform distribution, ``(A, K)``; 0 for categories that a column does not have"""

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
        # With the weights w_i, actions a_i and momentum m: p(k) <- m p(k) + (1 - m) sum_i w_i [a_i = k]
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
    Make the distribution that suits an action space.

    :param space: the action space
    :param horizon: the number of steps of a sequence
    :param std: the initial standard deviation of scaled actions
    :param truncate: an argument of :class:`GaussianActions`
    :param repeat_last: an argument of :class:`GaussianActions`
    :raises UnsupportedSpace: for other spaces, and for a ``Box`` without finite bounds
    """
    if isinstance(space, spaces.Box):
        refuse_unscalable(space)
        return GaussianActions(space, horizon, std, truncate, repeat_last)
    return CategoricalActions(space, horizon)


def refuse_unscalable(space: spaces.Box) -> None:
    """
    Refuse a ``Box`` whose actions cannot be scaled to [-1, 1].

    :raises UnsupportedSpace: for a ``Box`` without finite bounds, or with equal ones, or too wide for single precision
    """
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UnsupportedSpace(
            f"The action space {space} has no finite bounds, so its actions cannot be scaled. Wrap the environment in "
            "gymnasium.wrappers.RescaleAction or declare Box(low, high) with the limits of the actuator."
        )
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not (np.isfinite(width).all() and (width > 0).all()):
        raise UnsupportedSpace(
            f"The action space {space} cannot be scaled to [-1, 1]: every column needs low < high, and a difference that "
            "single precision can represent. Leave out columns that cannot vary, and declare Box(low, high) with the "
            "actuator's limits."
        )


def mask_first(parameters: State, mask: th.Tensor, distribution: ActionDistribution) -> State:
    """
    Forbid actions in the first step, the only one whose allowed actions are known.

    The probabilities of the allowed actions are divided by their sum; if the sum is 0, all allowed actions are equally likely.

    :param parameters: the parameters of the distribution
    :param mask: ``(B, n_actions)``
    :param distribution: a categorical distribution
    """
    assert isinstance(distribution, CategoricalActions)
    probs = parameters["probs"].clone()
    allowed = probs[:, 0, 0] * mask
    share = allowed.sum(-1, keepdim=True)
    probs[:, 0, 0] = th.where(share > 0, allowed / share.clamp(min=1e-12), mask / mask.sum(-1, keepdim=True).clamp(min=1))
    return {"probs": probs}


def start(distribution: ActionDistribution, carry: State | None, is_first: th.Tensor, rows: int, device: th.device) -> State:
    """
    Return the parameters at the beginning of a decision: the initial ones where an episode begins, else the carried ones.

    :param distribution: the distribution
    :param carry: the parameters at the end of the last decision, or ``None``
    :param is_first: ``(B,)`` booleans: whether an episode begins
    :param rows: the number of environments
    :param device: the device of the parameters
    :raises ValueError: for a carry of another structure
    """
    initial = distribution.initial(rows, device)
    if carry is None:
        return initial
    if describe(carry) != describe(initial):
        raise ValueError(
            f"The carried plan has the layout {describe(carry)}, and this planner's plans have {describe(initial)}: it comes "
            "from another planner, horizon or number of environments. Begin anew, with state=None."
        )
    warm = distribution.warm(carry)

    def choose(new: th.Tensor, old: th.Tensor) -> th.Tensor:
        return th.where(is_first.to(device).view(-1, *[1] * (new.dim() - 1)), new, old)

    return tree_map(choose, initial, warm)
