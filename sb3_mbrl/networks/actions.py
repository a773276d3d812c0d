"""Action distributions: how an actor's outputs become actions as SB3's replay buffer stores them."""

from abc import ABC, abstractmethod

import torch as th
from gymnasium import spaces
from torch.distributions import Bernoulli, Normal

from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace
from sb3_mbrl.networks.latents import CategoricalLatent
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import Constant


class ActionOutput(ABC):
    """A family of distributions over actions ``(..., A)``, parametrised by an actor's outputs ``(..., size)``."""

    size: int
    """The number of outputs that the actor must have"""

    @abstractmethod
    def sample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """Draw an action without gradients, for REINFORCE."""

    def rsample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw an action through which gradients flow (reparametrisation).

        :raises MissingCapability: for discrete actions
        """
        raise MissingCapability("gradients flow through continuous actions (Box) alone: choose actor_gradient='reinforce'")

    @abstractmethod
    def mode(self, out: th.Tensor) -> th.Tensor:
        """Return the most likely action."""

    @abstractmethod
    def log_prob(self, out: th.Tensor, action: th.Tensor) -> th.Tensor:
        """Compute the log-probability of an action: ``(...)``."""

    @abstractmethod
    def entropy(self, out: th.Tensor) -> th.Tensor:
        """Compute the entropy in nats: ``(...)``."""


class BoundedNormal(ActionOutput):
    """
    A normal distribution with bounded parameters; samples are not squashed, the environment clips them.

    With the outputs ``m`` and ``s`` (DreamerV3)::

        mean = tanh(m)
        std  = (max_std - min_std) sigmoid(s + 2) + min_std

    :param n: the number of elements of an action
    :param min_std: the smallest standard deviation
    :param max_std: the largest standard deviation
    """

    def __init__(self, n: int, min_std: float = 0.1, max_std: float = 1.0) -> None:
        self.n, self.min_std, self.max_std = n, min_std, max_std
        self.size = 2 * n

    def _normal(self, out: th.Tensor) -> Normal:
        mean, raw = out.float().chunk(2, -1)
        std = (self.max_std - self.min_std) * th.sigmoid(raw + 2.0) + self.min_std
        return Normal(th.tanh(mean), std, validate_args=False)

    def sample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        return self.rsample(out.detach(), generator)

    def rsample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        normal = self._normal(out)
        noise = th.randn(normal.loc.shape, generator=on_device(generator, out.device), device=out.device)
        return normal.loc + normal.scale * noise

    def mode(self, out: th.Tensor) -> th.Tensor:
        return self._normal(out).loc

    def log_prob(self, out: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self._normal(out).log_prob(action).sum(-1)

    def entropy(self, out: th.Tensor) -> th.Tensor:
        return self._normal(out).entropy().sum(-1)


class Categories(ActionOutput):
    """
    One or several independent categorical variables.

    :param sizes: the number of categories of each
    :param first: the smallest value of each
    :param unimix: the share of a uniform distribution, so that every action keeps a probability
    """

    def __init__(self, sizes: list[int], first: list[int], unimix: float = 0.01) -> None:
        self.parts = [CategoricalLatent(1, n, unimix) for n in sizes]
        self.sizes, self.first = sizes, Constant(th.as_tensor(first))
        self.size = sum(sizes)

    def _each(self, out: th.Tensor) -> list[tuple[CategoricalLatent, th.Tensor]]:
        return list(zip(self.parts, out.split(self.sizes, -1), strict=True))

    def sample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        return self._values([part.sample(stats, generator) for part, stats in self._each(out.detach())])

    def mode(self, out: th.Tensor) -> th.Tensor:
        return self._values([part.mode(stats) for part, stats in self._each(out)])

    def _values(self, one_hot: list[th.Tensor]) -> th.Tensor:
        return th.cat([value.argmax(-1) for value in one_hot], -1) + self.first.on(one_hot[0].device)

    def log_prob(self, out: th.Tensor, action: th.Tensor) -> th.Tensor:
        index = action.long() - self.first.on(action.device)
        parts = [part.log_probs(stats).squeeze(-2) for part, stats in self._each(out)]
        return th.stack([p.gather(-1, index[..., i, None]).squeeze(-1) for i, p in enumerate(parts)]).sum(0)

    def entropy(self, out: th.Tensor) -> th.Tensor:
        return th.stack([part.entropy(stats) for part, stats in self._each(out)]).sum(0)


class Bits(ActionOutput):
    """
    A vector of independent bits, each with the probability ``sigmoid(out)`` of 1.

    :param n: the number of bits
    """

    def __init__(self, n: int) -> None:
        self.size = n

    def sample(self, out: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        uniform = th.rand(out.shape, generator=on_device(generator, out.device), device=out.device)
        return (uniform < th.sigmoid(out.detach().float())).long()

    def mode(self, out: th.Tensor) -> th.Tensor:
        return (out > 0).long()

    def log_prob(self, out: th.Tensor, action: th.Tensor) -> th.Tensor:
        return Bernoulli(logits=out.float(), validate_args=False).log_prob(action.float()).sum(-1)

    def entropy(self, out: th.Tensor) -> th.Tensor:
        return Bernoulli(logits=out.float(), validate_args=False).entropy().sum(-1)


def action_output(space: spaces.Space, unimix: float = 0.01) -> ActionOutput:
    """
    Choose the distribution for an action space.

    :param space: ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :raises UnsupportedSpace: for any other space
    """
    if isinstance(space, spaces.Box):
        return BoundedNormal(int(th.Size(space.shape).numel()))
    if isinstance(space, spaces.Discrete):
        return Categories([int(space.n)], [int(space.start)], unimix)
    if isinstance(space, spaces.MultiDiscrete):
        return Categories([int(n) for n in space.nvec], [int(n) for n in space.start], unimix)
    if isinstance(space, spaces.MultiBinary):
        return Bits(int(th.Size(space.shape).numel()))
    raise UnsupportedSpace(f"no actor for actions {space}")
