"""The stochastic half of a latent state: categories (DreamerV2 and V3) or Gaussian numbers (PlaNet, DreamerV1)."""

from abc import ABC, abstractmethod
from typing import Any

import torch as th
import torch.nn.functional as F

from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import Constant


class Latent(ABC):
    """
    A family of distributions over latent variables, given by the ``size`` numbers that a network puts out.
    """

    size: int
    """Numbers that parametrise a distribution"""
    shape: tuple[int, ...]
    """Of a sample, per row"""
    flat: int
    """Numbers in a sample"""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        """What samples of so many rows are made of: for a whole sequence at once, so that its steps draw nothing."""

    @abstractmethod
    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """A sample, ``(..., *shape)``, out of noise; gradients flow into the parameters ``(..., size)``."""

    def sample(self, stats: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """``(..., *shape)``; gradients flow into the parameters ``(..., size)``."""
        return self.draw(stats, self.noise(tuple(stats.shape[:-1]), stats.device, generator))

    @abstractmethod
    def mode(self, stats: th.Tensor) -> th.Tensor:
        """The likeliest sample, ``(..., *shape)``."""

    def pack(self, sample: th.Tensor) -> th.Tensor:
        """A sample in the form in which it is stored."""
        return sample

    def unpack(self, stored: th.Tensor) -> th.Tensor:
        """A sample out of what :meth:`pack` made."""
        return stored

    @abstractmethod
    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        """What :meth:`divergence` compares, out of the parameters ``(..., size)``."""

    @abstractmethod
    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        """``KL(left || right)`` in nats, summed over all latent variables: ``(...)``."""

    @abstractmethod
    def entropy(self, stats: th.Tensor) -> th.Tensor:
        """In nats, summed over all latent variables: ``(...)``."""


class CategoricalLatent(Latent):
    """
    ``variables`` one-hot vectors; samples pass gradients straight through to the probabilities (DreamerV2, algorithm 1).

    :param variables: 32 in the papers
    :param classes: of each; 32 in DreamerV2, 4 to 96 by size in V3
    :param unimix: share of a uniform distribution mixed in, so that no probability is ever 0 (V3: 1 %)
    """

    def __init__(self, variables: int = 32, classes: int = 32, unimix: float = 0.01) -> None:
        self.variables, self.classes, self.unimix = variables, classes, unimix
        # So much of the uniform part has gone before a class; the last is above any noise, whatever was rounded.
        part = th.arange(1, classes + 1) * (unimix / classes / (1 - unimix))
        part[-1] = 2.0 / (1 - unimix)
        self._uniform = Constant(part)
        self.size = self.flat = variables * classes
        self.shape = (variables, classes)

    def probs(self, stats: th.Tensor) -> th.Tensor:
        """``(..., variables, classes)``, in float32."""
        probs = softmax(stats.float().unflatten(-1, self.shape))
        return probs if not self.unimix else (1 - self.unimix) * probs + self.unimix / self.classes

    def log_probs(self, stats: th.Tensor) -> th.Tensor:
        """``(..., variables, classes)``, in float32."""
        if not self.unimix:
            return stats.float().unflatten(-1, self.shape).log_softmax(-1)
        return self.probs(stats).log()

    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        uniform = th.rand(*shape, self.variables, 1, generator=on_device(generator, device), device=device)
        return uniform.div_(1 - self.unimix)

    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return self._with_gradients(self._drawn(stats.detach(), noise), stats)

    def _drawn(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        The first class whose cumulated probability is above the noise, found without a look at the numbers. Weights are not
        divided by their sum, and nothing is searched: on a processor, softmax and indices cost ten times that much where
        classes are few.
        """
        logits = stats.float().unflatten(-1, self.shape)
        rising = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum(-1)
        # Of the uniform part, so much has gone before: sum_k (1 - u) p_k + k u / K > noise, for both sides without p's sum.
        above = (rising > (noise - self._uniform.on(stats.device)) * rising[..., -1:]).float()
        one_hot = above.clone()
        one_hot[..., 1:] -= above[..., :-1]
        return one_hot

    def mode(self, stats: th.Tensor) -> th.Tensor:
        index = stats.unflatten(-1, self.shape).argmax(-1, keepdim=True)
        one_hot = th.zeros(*index.shape[:-1], self.classes, device=stats.device).scatter_(-1, index, 1.0)
        return self._with_gradients(one_hot, stats)

    def pack(self, sample: th.Tensor) -> th.Tensor:
        """The indices of the classes, ``(..., variables)``."""
        return sample.argmax(-1).to(th.uint8)

    def unpack(self, stored: th.Tensor) -> th.Tensor:
        return F.one_hot(stored.long(), self.classes).float()

    def _with_gradients(self, one_hot: th.Tensor, stats: th.Tensor) -> th.Tensor:
        """The same, with the gradients of the probabilities."""
        if not (stats.requires_grad and th.is_grad_enabled()):
            return one_hot
        return _StraightThrough.apply(stats.float().unflatten(-1, self.shape), one_hot, 1 - self.unimix)

    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        return (self.log_probs(stats),)

    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        (p,), (q,) = left, right
        return (p.exp() * (p - q)).sum((-2, -1))

    def entropy(self, stats: th.Tensor) -> th.Tensor:
        log_probs = self.log_probs(stats)
        return -(log_probs.exp() * log_probs).sum((-2, -1))


FEW_CLASSES = 8
"""On a processor, torch's softmax over so few takes several times as long as its parts"""


def softmax(logits: th.Tensor) -> th.Tensor:
    """Over the last axis."""
    few = logits.shape[-1] <= FEW_CLASSES and logits.device.type == "cpu"
    return _SoftmaxOfFew.apply(logits) if few else logits.softmax(-1)


def _softmax_gradient(gradient: th.Tensor, probs: th.Tensor) -> th.Tensor:
    weighted = gradient * probs
    return weighted.addcmul_(probs, weighted.sum(-1, keepdim=True), value=-1)


class _SoftmaxOfFew(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: th.Tensor) -> th.Tensor:
        probs = (logits - logits.amax(-1, keepdim=True)).exp_()
        probs.div_(probs.sum(-1, keepdim=True))
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        return _softmax_gradient(gradients[0], *ctx.saved_tensors)


class _StraightThrough(th.autograd.Function):
    """A sample, with the gradients of ``share * softmax(logits)``."""

    @staticmethod
    def forward(ctx: Any, logits: th.Tensor, one_hot: th.Tensor, share: float) -> th.Tensor:
        ctx.save_for_backward(softmax(logits))
        ctx.share = share
        return one_hot

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        return _softmax_gradient(gradients[0], *ctx.saved_tensors).mul_(ctx.share), None, None


class GaussianLatent(Latent):
    """
    Independent normal numbers.

    :param variables: 30 in PlaNet and DreamerV1
    :param std: how the network's second half becomes a standard deviation: ``"softplus"`` (``softplus(x) + min_std``: PlaNet,
        DreamerV1) or ``"sigmoid2"`` (``2 sigmoid(x / 2) + min_std``: V2)
    :param min_std: the least of it
    """

    def __init__(self, variables: int = 30, std: str = "softplus", min_std: float = 0.1) -> None:
        if std not in ("softplus", "sigmoid2"):
            raise ValueError(f"std={std!r}: choose 'softplus' or 'sigmoid2'")
        self.variables, self.std, self.min_std = variables, std, min_std
        self.size, self.flat, self.shape = 2 * variables, variables, (variables,)

    def moments(self, stats: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and standard deviation, ``(..., variables)`` each, in float32."""
        mean, raw = stats.float().chunk(2, -1)
        width = F.softplus(raw) if self.std == "softplus" else 2 * th.sigmoid(raw / 2)
        return mean, width + self.min_std

    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        return th.randn(*shape, self.variables, generator=on_device(generator, device), device=device)

    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        mean, std = self.moments(stats)
        return mean + std * noise

    def mode(self, stats: th.Tensor) -> th.Tensor:
        return self.moments(stats)[0]

    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        return self.moments(stats)

    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        (m1, s1), (m2, s2) = left, right
        return ((s2 / s1).log() + (s1.square() + (m1 - m2).square()) / (2 * s2.square()) - 0.5).sum(-1)

    def entropy(self, stats: th.Tensor) -> th.Tensor:
        std = self.moments(stats)[1]
        return (std.log() + 0.5 * (1 + th.log(th.tensor(2 * th.pi)))).sum(-1)


# ------------------------------------------------------------------------------------------------------------- KL losses


Sides = tuple[th.Tensor, th.Tensor]
"""The same divergences twice, ``(...)`` each: by their gradients one moves the prior alone, the other the posterior alone"""


def one_sided_kl(latent: Latent, post: th.Tensor, prior: th.Tensor) -> Sides:
    """``KL(sg(post) || prior)`` and ``KL(post || sg(prior))``: equal but for their gradients."""
    left, right = latent.distribution(post), latent.distribution(prior)
    return latent.divergence(_held(left), right), latent.divergence(left, _held(right))


def _held(distribution: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
    return tuple(part.detach() for part in distribution)


def split_kl(sides: Sides, *, free: float = 1.0) -> Sides:
    """
    DreamerV3's two losses, each at least ``free`` nats per step: the prior learns towards the posterior, the
    posterior towards the prior.

    :return: dynamics loss and representation loss
    """
    moves_prior, moves_post = sides
    return moves_prior.clamp(min=free), moves_post.clamp(min=free)


def balanced_kl(sides: Sides, *, balance: float = 0.8, free: float = 0.0) -> th.Tensor:
    """DreamerV2, algorithm 2: ``balance`` of the loss moves the prior, the rest the posterior; free nats on the mean."""
    moves_prior, moves_post = (side.mean().clamp(min=free) for side in sides)
    return balance * moves_prior + (1 - balance) * moves_post


def joint_kl(sides: Sides, *, free: float = 3.0, per_step: bool = False) -> th.Tensor:
    """
    One divergence that moves both. A scalar.

    :param per_step: PlaNet's ``mean(max(0, KL - free))``; else DreamerV1's ``max(mean(KL), free)``
    """
    moves_prior, moves_post = sides
    divergence = moves_prior + moves_post - moves_post.detach()  # the value of one, the gradients of both
    return (divergence - free).clamp(min=0.0).mean() if per_step else divergence.mean().clamp(min=free)
