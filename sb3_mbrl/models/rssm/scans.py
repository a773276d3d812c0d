"""
Linear maps that every step of a scan applies. On a processor the gradient of their weights, a thin product and a sum at every
step, is most of what going backwards costs; here it is one product for all steps.
"""

from typing import Any

import torch as th
from torch import nn


class LinearMap:
    """
    ``x @ weight + bias``.

    :param weight: ``(I, O)``, or ``(N, I, O)``: one for each of ``N`` blocks
    :param bias: ``(O,)``, or ``(N, 1, O)``
    """

    def __init__(self, weight: th.Tensor, bias: th.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: th.Tensor, plus: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: ``(B, I)`` or ``(N, B, I)``
        :param plus: ``(B, O)`` or ``(N, B, O)``: in the place of the bias
        """
        return _apply(x, self.weight, self.bias if plus is None else plus)


class GatheringMap(LinearMap):
    """The same. Going backwards, inputs and gradients of all steps are kept until the last of them is there."""

    def __init__(self, weight: th.Tensor, bias: th.Tensor | None = None) -> None:
        super().__init__(weight.detach(), None if bias is None else bias.detach())
        self._seen: _Seen = ([], [])
        # Every step depends on it, so that its own turn comes when all of theirs are over.
        self._first = _Gather.apply(self._seen, weight, bias)

    def __call__(self, x: th.Tensor, plus: th.Tensor | None = None) -> th.Tensor:
        return _Step.apply(self._first, self._seen, self.weight, self.bias, x, plus)


def linear_map(weight: th.Tensor, bias: th.Tensor | None = None) -> LinearMap:
    """Gathering, where that pays: for gradients on a processor, in one precision."""
    pays = th.is_grad_enabled() and weight.requires_grad and weight.device.type == "cpu"
    plain = th.compiler.is_compiling() or th.is_autocast_enabled("cpu")
    return GatheringMap(weight, bias) if pays and not plain else LinearMap(weight, bias)


def map_of(layer: nn.Module) -> LinearMap:
    """Of a linear layer."""
    assert isinstance(layer, nn.Linear)
    return linear_map(layer.weight.t(), layer.bias)


_Seen = tuple[list[th.Tensor], list[th.Tensor]]
"""Inputs, and gradients of outputs"""


def _apply(x: th.Tensor, weight: th.Tensor, plus: th.Tensor | None) -> th.Tensor:
    if plus is None:
        return th.matmul(x, weight)
    return th.addmm(plus, x, weight) if x.dim() == 2 else th.baddbmm(plus, x, weight)


class _Gather(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, seen: _Seen, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        ctx.seen, ctx.biased = seen, bias is not None
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        inputs, outputs = (th.cat(steps, -2) for steps in ctx.seen)
        for steps in ctx.seen:
            steps.clear()
        of_bias = None
        if ctx.biased:
            of_bias = outputs.sum(-2, keepdim=outputs.dim() == 3)
        return None, inputs.transpose(-1, -2) @ outputs, of_bias


class _Step(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        first: th.Tensor,
        seen: _Seen,
        weight: th.Tensor,
        bias: th.Tensor | None,
        x: th.Tensor,
        plus: th.Tensor | None,
    ) -> th.Tensor:
        ctx.seen, ctx.added = seen, plus is not None
        ctx.save_for_backward(x, weight)
        return _apply(x, weight, bias if plus is None else plus)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        for steps, value in zip(ctx.seen, (x.detach(), gradient), strict=True):
            steps.append(value)
        of_x = gradient @ weight.transpose(-1, -2) if ctx.needs_input_grad[4] else None
        return gradient.new_zeros(()), None, None, None, of_x, gradient if ctx.added else None
