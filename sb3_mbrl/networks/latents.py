"""The stochastic half of a latent state: one-hot categories (DreamerV2 and V3) or Gaussian values (PlaNet, DreamerV1)."""

from abc import ABC, abstractmethod
from typing import Any

import torch as th
import torch.nn.functional as F

from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import Constant


class Latent(ABC):
    """
    A family of distributions over latent variables.

    A network puts out the parameters of a distribution, ``(..., size)``; samples have the shape ``(..., *shape)``.
    """

    size: int
    """The number of parameters of a distribution"""
    shape: tuple[int, ...]
    """The shape of a sample, without the batch"""
    flat: int
    """The number of elements of a sample"""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw the noise from which :meth:`draw` makes samples: for a whole sequence at once, so that its steps draw nothing.

        :param shape: the leading axes of the samples
        """

    @abstractmethod
    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Turn noise into a sample, ``(..., *shape)``; gradients flow into the parameters ``(..., size)``."""

    def sample(self, stats: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """Draw a sample, ``(..., *shape)``; gradients flow into the parameters ``(..., size)``."""
        return self.draw(stats, self.noise(tuple(stats.shape[:-1]), stats.device, generator))

    @abstractmethod
    def mode(self, stats: th.Tensor) -> th.Tensor:
        """Return the most likely sample, ``(..., *shape)``."""

    def pack(self, sample: th.Tensor) -> th.Tensor:
        """Make a sample as small as it can be, for storage."""
        return sample

    def unpack(self, packed: th.Tensor) -> th.Tensor:
        """Undo :meth:`pack`."""
        return packed

    @abstractmethod
    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        """Compute the tensors that :meth:`divergence` compares from the parameters ``(..., size)``."""

    @abstractmethod
    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        """Compute ``KL(left || right)`` in nats, summed over all latent variables: ``(...)``."""

    @abstractmethod
    def entropy(self, stats: th.Tensor) -> th.Tensor:
        """Compute the entropy in nats, summed over all latent variables: ``(...)``."""


class CategoricalLatent(Latent):
    """
    A vector of independent categorical variables, each a one-hot vector.

    The parameters are logits. Samples pass gradients straight through to the probabilities (DreamerV2, algorithm 1).

    :param variables: the number of variables; 32 in the papers
    :param classes: the number of classes of each; 32 in DreamerV2, 4 to 96 by size in V3
    :param unimix: the share ``u`` of a uniform distribution, so that no probability is ever 0 (V3: 1 %):
        ``probs = (1 - u) softmax(logits) + u / classes``
    """

    def __init__(self, variables: int = 32, classes: int = 32, unimix: float = 0.01) -> None:
        self.variables, self.classes, self.unimix = variables, classes, unimix
        # The uniform part of the cumulated probabilities after each class, k u / K, divided by 1 - u as the noise is (see
        # draw). The last one must lie above any noise, however the sums were rounded, so it is 2 instead of u.
        cumulated = th.arange(1, classes + 1) * (unimix / classes / (1 - unimix))
        cumulated[-1] = 2.0 / (1 - unimix)
        self._cumulated_uniform = Constant(cumulated)
        self.size = self.flat = variables * classes
        self.shape = (variables, classes)

    def probs(self, stats: th.Tensor) -> th.Tensor:
        """Compute the probabilities ``(..., variables, classes)`` in float32."""
        probs = softmax(stats.float().unflatten(-1, self.shape))
        return probs if not self.unimix else (1 - self.unimix) * probs + self.unimix / self.classes

    def log_probs(self, stats: th.Tensor) -> th.Tensor:
        """Compute the log-probabilities ``(..., variables, classes)`` in float32."""
        if not self.unimix:
            return stats.float().unflatten(-1, self.shape).log_softmax(-1)
        return self.probs(stats).log()  # no probability is below u / K, so the logarithm is safe

    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        """Draw uniform numbers, one per variable, divided by ``1 - unimix``."""
        uniform = th.rand(*shape, self.variables, 1, generator=on_device(generator, device), device=device)
        return uniform.div_(1 - self.unimix)

    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return self._straight_through(self._one_hot(stats.detach(), noise), stats)

    def _one_hot(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Draw by inverting the cumulative distribution.

        Plainly, with ``x`` uniform in [0, 1)::

            k = first class with cumsum(probs)[k] > x
            sample = one_hot(k)

        With ``P_k`` the cumulated softmax and ``u`` the uniform share, the condition is ``(1 - u) P_k + k u / K > x``. Three
        things make it fast on a CPU, where softmax and indices cost ten times as much for few classes:

        * The exponentials ``w`` are not normalised. Instead, both sides are multiplied by ``sum(w)`` and divided by
          ``1 - u``::

              cumsum(w)_k > (x / (1 - u) - k u / K / (1 - u)) sum(w)

        * Nothing is searched: the condition is false before class ``k`` and true from there on, so its difference along the
          classes is the one-hot vector.
        * There is no branch on the values, which would wait for a GPU.
        """
        logits = stats.float().unflatten(-1, self.shape)
        cumulated = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum(-1)
        threshold = (noise - self._cumulated_uniform.on(stats.device)) * cumulated[..., -1:]
        above = (cumulated > threshold).float()
        one_hot = above.clone()
        one_hot[..., 1:] -= above[..., :-1]
        return one_hot

    def mode(self, stats: th.Tensor) -> th.Tensor:
        index = stats.unflatten(-1, self.shape).argmax(-1, keepdim=True)
        one_hot = th.zeros(*index.shape[:-1], self.classes, device=stats.device).scatter_(-1, index, 1.0)
        return self._straight_through(one_hot, stats)

    def pack(self, sample: th.Tensor) -> th.Tensor:
        """Return the indices of the classes, ``(..., variables)``, in bytes."""
        return sample.argmax(-1).to(th.uint8)

    def unpack(self, packed: th.Tensor) -> th.Tensor:
        return F.one_hot(packed.long(), self.classes).float()

    def _straight_through(self, one_hot: th.Tensor, stats: th.Tensor) -> th.Tensor:
        """
        Give a sample the gradients of the probabilities.

        Plainly: ``one_hot + probs - probs.detach()``. :class:`_StraightThrough` computes the same gradient without the two
        sums, and keeps the sample exactly one-hot.
        """
        if not (stats.requires_grad and th.is_grad_enabled()):
            return one_hot
        return _StraightThrough.apply(stats.float().unflatten(-1, self.shape), one_hot, 1 - self.unimix)

    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        """Compute the log-probabilities."""
        return (self.log_probs(stats),)

    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        (log_p,), (log_q,) = left, right
        return (log_p.exp() * (log_p - log_q)).sum((-2, -1))  # sum_k p_k (ln p_k - ln q_k)

    def entropy(self, stats: th.Tensor) -> th.Tensor:
        log_probs = self.log_probs(stats)
        return -(log_probs.exp() * log_probs).sum((-2, -1))


FEW_CLASSES = 8
"""The number of classes up to which torch's softmax takes several times as long as its parts on a CPU"""


def softmax(logits: th.Tensor) -> th.Tensor:
    """Compute the softmax over the last axis; the same as torch's, and faster over few classes on a CPU."""
    few = logits.shape[-1] <= FEW_CLASSES and logits.device.type == "cpu"
    return _SoftmaxOfFew.apply(logits) if few else logits.softmax(-1)


def _softmax_gradient(gradient: th.Tensor, probs: th.Tensor) -> th.Tensor:
    """Compute ``p * (g - sum(g * p))``, the gradient of the logits for a gradient ``g`` of ``p = softmax(logits)``."""
    weighted = gradient * probs
    return weighted.addcmul_(probs, weighted.sum(-1, keepdim=True), value=-1)


class _SoftmaxOfFew(th.autograd.Function):
    """A softmax that is computed from its parts, ``exp(x - max) / sum``, in place where possible."""

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
    """The identity of a sample, with the gradients of ``share * softmax(logits)``."""

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
    A vector of independent normal variables; the parameters are the means and the raw standard deviations.

    :param variables: the number of variables; 30 in PlaNet and DreamerV1
    :param std: the map from a raw value to a standard deviation: ``"softplus"`` (``softplus(x) + min_std``: PlaNet,
        DreamerV1) or ``"sigmoid2"`` (``2 sigmoid(x / 2) + min_std``: V2)
    :param min_std: the smallest standard deviation
    """

    def __init__(self, variables: int = 30, std: str = "softplus", min_std: float = 0.1) -> None:
        if std not in ("softplus", "sigmoid2"):
            raise ValueError(f"std={std!r}: choose 'softplus' or 'sigmoid2'")
        self.variables, self.std, self.min_std = variables, std, min_std
        self.size, self.flat, self.shape = 2 * variables, variables, (variables,)

    def moments(self, stats: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Compute mean and standard deviation, ``(..., variables)`` each, in float32."""
        mean, raw = stats.float().chunk(2, -1)
        width = F.softplus(raw) if self.std == "softplus" else 2 * th.sigmoid(raw / 2)
        return mean, width + self.min_std

    def noise(self, shape: tuple[int, ...], device: th.device, generator: th.Generator | None = None) -> th.Tensor:
        """Draw standard normal numbers, one per variable."""
        return th.randn(*shape, self.variables, generator=on_device(generator, device), device=device)

    def draw(self, stats: th.Tensor, noise: th.Tensor) -> th.Tensor:
        mean, std = self.moments(stats)
        return mean + std * noise

    def mode(self, stats: th.Tensor) -> th.Tensor:
        return self.moments(stats)[0]

    def distribution(self, stats: th.Tensor) -> tuple[th.Tensor, ...]:
        """Compute mean and standard deviation."""
        return self.moments(stats)

    def divergence(self, left: tuple[th.Tensor, ...], right: tuple[th.Tensor, ...]) -> th.Tensor:
        # ln(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, summed over the variables
        (m1, s1), (m2, s2) = left, right
        return ((s2 / s1).log() + (s1.square() + (m1 - m2).square()) / (2 * s2.square()) - 0.5).sum(-1)

    def entropy(self, stats: th.Tensor) -> th.Tensor:
        std = self.moments(stats)[1]
        return (std.log() + 0.5 * (1 + th.log(th.tensor(2 * th.pi)))).sum(-1)  # ln s + (1 + ln 2 pi) / 2
