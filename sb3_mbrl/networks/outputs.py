"""What the numbers at the end of a network mean: a loss against a target, and a prediction."""

from abc import ABC, abstractmethod
from typing import Any

import torch as th
import torch.nn.functional as F

from sb3_mbrl.networks.layers import symexp, symlog
from sb3_mbrl.trees import Constant


class Output(ABC):
    """
    :param shape: of a target, per row
    """

    scale = 1.0
    """Of the last layer's initial weights"""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape

    @property
    def size(self) -> int:
        """Columns that the network has to put out."""
        return int(th.Size(self.shape).numel())

    @abstractmethod
    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        """``(...)``: a negative log-likelihood, up to a constant, summed over the target's shape."""

    def losses(self, out: th.Tensor, *targets: th.Tensor) -> list[th.Tensor]:
        """:meth:`loss` against each of several targets."""
        return [self.loss(out, target) for target in targets]

    @abstractmethod
    def mean(self, out: th.Tensor) -> th.Tensor:
        """``(..., *shape)``: what is expected of the target."""

    def _shaped(self, out: th.Tensor) -> th.Tensor:
        return out.float().unflatten(-1, self.shape) if self.shape else out.float().squeeze(-1)

    def _summed(self, errors: th.Tensor) -> th.Tensor:
        return errors.flatten(errors.dim() - len(self.shape)).sum(-1) if self.shape else errors


class NormalOutput(Output):
    """A normal distribution of deviation 1 around the output (PlaNet, DreamerV1 and V2)."""

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed(0.5 * (self._shaped(out) - target.float()).square())

    def mean(self, out: th.Tensor) -> th.Tensor:
        return self._shaped(out)


class SymlogOutput(Output):
    """The squared error of the target's :func:`~sb3_mbrl.networks.layers.symlog` (DreamerV3)."""

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed((self._shaped(out) - symlog(target.float())).square())

    def mean(self, out: th.Tensor) -> th.Tensor:
        return symexp(self._shaped(out))


class BernoulliOutput(Output):
    """A probability for every element; targets may lie between 0 and 1 (the discount in a continue head does)."""

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self._summed(F.binary_cross_entropy_with_logits(self._shaped(out), target.float(), reduction="none"))

    def mean(self, out: th.Tensor) -> th.Tensor:
        return th.sigmoid(self._shaped(out))


class OneHotOutput(Output):
    """
    A category; targets are one-hot vectors, and so is the prediction: the likeliest.

    :param classes: how many
    """

    def __init__(self, classes: int) -> None:
        super().__init__((classes,))

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return -(out.float().log_softmax(-1) * target.float()).sum(-1)

    def mean(self, out: th.Tensor) -> th.Tensor:
        return F.one_hot(out.argmax(-1), self.shape[0]).float()


class TwoHotOutput(Output):
    """
    A number, by a distribution over bins whose distance grows with their size (DreamerV3). A target lies
    between two bins, which share its weight.

    :param bins: how many, odd
    :param low: the outermost bins are at ``symexp(±low)``
    :param in_symlog: of 2023: equally spaced bins for the symlog of the target; the prediction is the symexp of their mean
    """

    scale = 0.0

    def __init__(self, bins: int = 255, low: float = 20.0, *, in_symlog: bool = False) -> None:
        super().__init__(())
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins={bins}: give an odd number from 3 on, so that one of them is 0")
        self.n_bins, self.in_symlog = bins, in_symlog
        half = th.linspace(-low, 0.0, bins // 2 + 1)
        half = half if in_symlog else symexp(half)
        self._bins = Constant(th.cat([half, -half[:-1].flip(0)]))

    @property
    def size(self) -> int:
        return self.n_bins

    @property
    def bins(self) -> th.Tensor:
        """Their middles, from the lowest to the highest."""
        return self._bins.value

    def between(self, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The bin below a target (integers), and the weight of the bin above it; the one below has the rest."""
        target = target.float()
        value = symlog(target) if self.in_symlog else target
        bins = self._bins.on(target.device)
        below = th.searchsorted(bins, value.contiguous()).clamp(1, self.n_bins - 1) - 1
        low, high = bins[below], bins[below + 1]
        return below, ((value - low) / (high - low)).clamp(0.0, 1.0)

    def loss(self, out: th.Tensor, target: th.Tensor) -> th.Tensor:
        return self.losses(out, target)[0]

    def losses(self, out: th.Tensor, *targets: th.Tensor) -> list[th.Tensor]:
        # All but two weights are 0: the rest of the sum is not computed. What normalises is computed once.
        places = [self.between(target) for target in targets]
        index = th.stack([bin for below, _ in places for bin in (below, below + 1)], -1)
        log_probs = out.float().log_softmax(-1).gather(-1, index).unflatten(-1, (-1, 2)).unbind(-2)
        return [-th.lerp(pair[..., 0], pair[..., 1], share) for pair, (_, share) in zip(log_probs, places, strict=True)]

    def mean(self, out: th.Tensor) -> th.Tensor:
        mean = _MeanOfBins.apply(out.float(), self._bins.on(out.device))
        return symexp(mean) if self.in_symlog else mean


class _MeanOfBins(th.autograd.Function):
    """
    Bins lie symmetrically around 0, the outermost at half a billion: what counts is how much likelier a bin is than its mirror
    image, and that is computed from the difference of their logits. (Rounding errors of the probabilities themselves would be
    of the size of a reward.) Equal logits cancel to exactly 0. Everything is computed in its place: two thirds of the time on
    a processor.
    """

    @staticmethod
    def forward(ctx: Any, logits: th.Tensor, bins: th.Tensor) -> th.Tensor:
        middle = bins.shape[0] // 2
        right, left = logits[..., middle + 1 :], logits[..., :middle].flip(-1)
        top = logits.amax(-1, keepdim=True)
        likelier = th.maximum(right, left).sub_(top).exp_()
        apart = left.neg_().add_(right)
        less = apart.abs().neg_().expm1_()  # than the likelier of the two, as a share of it: -1 to 0
        mean = th.copysign(less, apart, out=apart).mul_(likelier).mul_(bins[middle + 1 :]).sum(-1)
        mean /= less.add_(2).mul_(likelier).sum(-1).add_((logits[..., middle] - top[..., 0]).exp_())
        ctx.save_for_backward(logits, bins, mean)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        logits, bins, mean = ctx.saved_tensors
        return logits.softmax(-1).mul_(bins - mean[..., None]).mul_(gradients[0][..., None]), None
