"""
Output distributions: the loss of a network's outputs against a target, and the prediction that they stand for.

Their names end in ``Output``, since torch.distributions has a ``Normal`` and a ``Bernoulli`` of its own.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch as th
import torch.nn.functional as F

from sb3_mbrl.networks.layers import symexp, symlog
from sb3_mbrl.trees import Constant

TRANSFORM_EPS = 0.001
"""The slope of MuZero's value transform at large values"""


class Output(ABC):
    """
    A distribution of targets ``(..., *shape)``, parametrised by a network's outputs ``(..., size)``.

    :param shape: the shape of a target, without the batch
    """

    scale = 1.0
    """The scale of the last layer's initial weights"""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape

    @property
    def size(self) -> int:
        """The number of outputs that the network must have"""
        return int(th.Size(self.shape).numel())

    @abstractmethod
    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        """Compute the negative log-likelihood of a target up to a constant, summed over the target's shape: ``(...)``."""

    def losses(self, out: th.Tensor, *targets: th.Tensor) -> list[th.Tensor]:
        """Compute :meth:`loss` against each of several targets."""
        return [self.loss(out, target) for target in targets]

    @abstractmethod
    def mean(self, out: th.Tensor) -> th.Tensor:
        """Compute the prediction, ``(..., *shape)``: the mean, or the most likely category."""

    def _shaped(self, out: th.Tensor) -> th.Tensor:
        return out.float().unflatten(-1, self.shape) if self.shape else out.float().squeeze(-1)

    def _summed(self, errors: th.Tensor) -> th.Tensor:
        return errors.flatten(errors.dim() - len(self.shape)).sum(-1) if self.shape else errors


class NormalOutput(Output):
    """A normal distribution with standard deviation 1 around the output (PlaNet, DreamerV1 and V2): ``(out - y)^2 / 2``."""

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed(0.5 * (self._shaped(out) - target.float()).square())

    def mean(self, out: th.Tensor) -> th.Tensor:
        return self._shaped(out)


class SymlogOutput(Output):
    """The squared error of the target's :func:`~sb3_mbrl.networks.layers.symlog` (DreamerV3): ``(out - symlog(y))^2``."""

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed((self._shaped(out) - symlog(target.float())).square())

    def mean(self, out: th.Tensor) -> th.Tensor:
        return symexp(self._shaped(out))


class BernoulliOutput(Output):
    """
    A probability for every element, ``sigmoid(out)``, with the cross-entropy as the loss.

    Targets may lie between 0 and 1, as the discount of a continue head does: the loss is smallest where the probability is the
    target.
    """

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed(F.binary_cross_entropy_with_logits(self._shaped(out), target.float(), reduction="none"))

    def mean(self, out: th.Tensor) -> th.Tensor:
        return th.sigmoid(self._shaped(out))


class OneHotOutput(Output):
    """
    A categorical distribution; targets are one-hot vectors, and so is the prediction, the most likely category.

    :param classes: the number of categories
    """

    def __init__(self, classes: int) -> None:
        super().__init__((classes,))

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return -(out.float().log_softmax(-1) * target.float()).sum(-1)

    def mean(self, out: th.Tensor) -> th.Tensor:
        return F.one_hot(out.argmax(-1), self.shape[0]).float()


class TwoHotOutput(Output):
    """
    A number as a categorical distribution over bins (DreamerV3).

    The bins lie at ``symexp`` of equally spaced numbers, so they are dense around 0 and far apart at large values. A target
    ``y`` between the bins ``b_k <= y <= b_(k+1)`` is a distribution with two weights whose mean is ``y``::

        w_(k+1) = (y - b_k) / (b_(k+1) - b_k),   w_k = 1 - w_(k+1)

    The loss is the cross-entropy with these weights, ``-(w_k ln p_k + w_(k+1) ln p_(k+1))``; the prediction is the mean of the
    bins, ``sum_k p_k b_k``. Targets beyond the outermost bins count as these.

    :param bins: the number of bins, odd
    :param low: the outermost bins are at ``symexp(±low)``
    :param in_symlog: the variant of 2023: equally spaced bins for the symlog of the target; the prediction is the symexp of
        their mean
    """

    scale = 0.0  # all bins equally likely: the first prediction is exactly 0

    def __init__(self, bins: int = 255, low: float = 20.0, *, in_symlog: bool = False) -> None:
        super().__init__(())
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins={bins}: give an odd number from 3 on, so that one of them is 0")
        self.n_bins, self.in_symlog = bins, in_symlog
        # The positive half mirrors the negative one, so that the bins are symmetric to the last bit.
        half = th.linspace(-low, 0.0, bins // 2 + 1)
        half = half if in_symlog else symexp(half)
        self._bins = Constant(th.cat([half, -half[:-1].flip(0)]))

    @property
    def size(self) -> int:
        return self.n_bins

    @property
    def bins(self) -> th.Tensor:
        """The bins in ascending order"""
        return self._bins.value

    def between(self, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Find the two bins of each target.

        :return: the index ``k`` of the bin below, and the weight ``w_(k+1)`` of the bin above; the bin below has the rest
        """
        target = target.float()
        value = symlog(target) if self.in_symlog else target
        bins = self._bins.on(target.device)
        below = th.searchsorted(bins, value.contiguous()).clamp(1, self.n_bins - 1) - 1
        low, high = bins[below], bins[below + 1]
        return below, ((value - low) / (high - low)).clamp(0.0, 1.0)

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self.losses(out, target)[0]

    def losses(self, out: th.Tensor, *targets: th.Tensor) -> list[th.Tensor]:
        # Plainly: [-(two_hot(target) * out.log_softmax(-1)).sum(-1) for target in targets]. All but two weights are 0, so only
        # two terms of the sum are computed, and the softmax is computed once for all targets.
        bins = [self.between(target) for target in targets]
        index = th.stack([k for below, _ in bins for k in (below, below + 1)], -1)
        log_probs = out.float().log_softmax(-1).gather(-1, index).unflatten(-1, (-1, 2)).unbind(-2)
        return [-th.lerp(pair[..., 0], pair[..., 1], above) for pair, (_, above) in zip(log_probs, bins, strict=True)]

    def mean(self, out: th.Tensor) -> th.Tensor:
        mean = _MeanOfBins.apply(out.float(), self._bins.on(out.device))
        return symexp(mean) if self.in_symlog else mean


def value_transform(x: th.Tensor) -> th.Tensor:
    """Compress values (MuZero, appendix F): ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x``."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + TRANSFORM_EPS * x


def inverse_value_transform(y: th.Tensor) -> th.Tensor:
    """Undo :func:`value_transform`: ``h^-1(y) = sign(y) (((sqrt(1 + 4 e (|y| + 1 + e)) - 1) / (2 e))^2 - 1)``."""
    e = TRANSFORM_EPS
    # In double precision: 1 is taken from a number close to it, and the rest is divided by 2 e.
    root = ((1 + 4 * e * (y.abs().double() + 1 + e)).sqrt() - 1) / (2 * e)
    return (y.sign() * (root.square() - 1)).float()


class ScaledOutput(Output):
    """
    A number as a categorical distribution over equally spaced bins of its :func:`value_transform` (MuZero, appendix F).

    A target between two bins is a distribution over both, whose mean it is; the loss is the cross-entropy with it. The
    prediction is the inverse transform of the mean of the bins. Targets beyond the outermost bins count as these.

    :param bins: the number of bins, odd
    :param value_range: the outermost bins are at the transform of ``±value_range``
    """

    scale = 0.0  # all bins equally likely: the first prediction is exactly 0

    def __init__(self, bins: int = 51, value_range: float = 300.0) -> None:
        super().__init__(())
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins={bins}: give an odd number from 3 on, so that one of them is 0")
        self.n_bins, self.value_range = bins, value_range
        limit = float(value_transform(th.tensor(value_range)))
        half = th.linspace(-limit, 0.0, bins // 2 + 1)  # mirrored, so that the bins are symmetric to the last bit
        self._bins = Constant(th.cat([half, -half[:-1].flip(0)]))

    @property
    def size(self) -> int:
        return self.n_bins

    def two_hot(self, target: th.Tensor) -> th.Tensor:
        """Return the target's distribution over the bins, ``(..., bins)``."""
        bins = self._bins.on(target.device)
        place = (value_transform(target.float()) - bins[0]) / (bins[1] - bins[0])
        # Plainly: weight 1 - |place - k| for the bins within a distance of 1, and 0 for the others.
        distance = (place.clamp(0, self.n_bins - 1)[..., None] - th.arange(self.n_bins, device=target.device)).abs()
        return (1 - distance).clamp(min=0.0)

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return -(self.two_hot(target) * out.float().log_softmax(-1)).sum(-1)

    def mean(self, out: th.Tensor) -> th.Tensor:
        return inverse_value_transform(out.float().softmax(-1) @ self._bins.on(out.device))


class _MeanOfBins(th.autograd.Function):
    """
    The mean of bins that are symmetric around 0.

    Plainly::

        mean = (logits.softmax(-1) * bins).sum(-1)

    The outermost bins are at half a billion, so rounding errors of the probabilities themselves would be as large as a reward.
    Each bin ``b > 0`` with the logit ``r`` is therefore taken together with its mirror image ``-b`` with the logit ``l``.
    With ``d = r - l`` and ``m = max(r, l)``::

        exp(r) - exp(l) = sign(d) exp(m) (1 - exp(-|d|))
        exp(r) + exp(l) =         exp(m) (1 + exp(-|d|))
        mean = sum_b b (exp(r) - exp(l)) / (sum_b (exp(r) + exp(l)) + exp(logit of the bin at 0))

    ``1 - exp(-|d|)`` comes from ``expm1``, which is exact for small differences; equal logits cancel to exactly 0. All
    logits have the largest one, ``top``, taken off. Everything is computed in place, which takes two thirds of the time on a
    CPU.

    The gradient is ``d mean / d logit_k = p_k (b_k - mean)``.
    """

    @staticmethod
    def forward(ctx: Any, logits: th.Tensor, bins: th.Tensor) -> th.Tensor:
        middle = bins.shape[0] // 2
        right, left = logits[..., middle + 1 :], logits[..., :middle].flip(-1)
        top = logits.amax(-1, keepdim=True)
        larger = th.maximum(right, left).sub_(top).exp_()  # exp(m - top)
        difference = left.neg_().add_(right)  # d; left was copied by flip
        expm1 = difference.abs().neg_().expm1_()  # exp(-|d|) - 1, from -1 to 0
        # sign(d) (1 - exp(-|d|)) exp(m) b: the magnitude of expm1 with the sign of d.
        mean = th.copysign(expm1, difference, out=difference).mul_(larger).mul_(bins[middle + 1 :]).sum(-1)
        # (1 + exp(-|d|)) exp(m), and the bin at 0.
        mean /= expm1.add_(2).mul_(larger).sum(-1).add_((logits[..., middle] - top[..., 0]).exp_())
        ctx.save_for_backward(logits, bins, mean)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        logits, bins, mean = ctx.saved_tensors
        return logits.softmax(-1).mul_(bins - mean[..., None]).mul_(gradients[0][..., None]), None
