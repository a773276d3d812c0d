"""Layers of the recurrent state-space models: initialisation, norms, block-diagonal maps, stacks of them."""

import math
from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

INIT_STD = 1.1368
"""Of a truncated normal distribution, times ``sqrt(1 / fan_in)`` (DreamerV3's code): unit variance after cutting at two"""


ROWS_AT_A_TIME = 1024
"""On a processor: what one layer makes of them is still in its cache when the next one reads it"""


def chunks(rows: th.Tensor) -> tuple[th.Tensor, ...]:
    """``(..., N)`` as ``(B, N)``; on a processor :data:`ROWS_AT_A_TIME`, which halves the time of wide outputs."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.split(ROWS_AT_A_TIME) if rows.device.type == "cpu" else (flat,)


def init_weight(weight: th.Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated normal numbers in place; ``scale`` 0 is zero (heads that begin by predicting nothing)."""
    if scale == 0.0:
        nn.init.zeros_(weight)
        return
    std = INIT_STD * math.sqrt(1.0 / fan_in)
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
    with th.no_grad():
        weight.mul_(scale)


class Linear(nn.Linear):
    """
    :param inputs: columns in
    :param outputs: columns out
    :param scale: of the initial weights; biases begin at 0
    :param bias: whether there are any
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0, bias: bool = True) -> None:
        self.scale = scale
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.in_features, self.scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """
    A linear map with a block-diagonal matrix: every block of columns sees its own block of inputs.

    The initial width is that of the whole input, as in DreamerV3's code: blocks begin smaller than separate maps would.

    :param inputs: columns in, all blocks together
    :param outputs: columns out, all blocks together
    :param blocks: how many
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"{inputs} inputs and {outputs} outputs cannot be cut into {blocks} blocks of the same size")
        self.blocks = blocks
        self.weight = nn.Parameter(th.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(th.zeros(outputs))
        init_weight(self.weight, inputs)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        grouped = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        return th.bmm(grouped, self.weight).transpose(0, 1).flatten(1) + self.bias


class RMSNorm(nn.Module):
    """
    Over the last axis, in float32 whatever comes in; a scale and no shift. On a processor several times faster than torch's,
    whose backward pass is made of a dozen operations.

    :param size: columns
    """

    def __init__(self, size: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(size))
        # In a tensor: on a processor, a number that is added costs as much as a small layer.
        self.register_buffer("eps", th.tensor(eps), persistent=False)

    eps: th.Tensor

    def forward(self, x: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            return _RootMeanSquare.apply(x.float(), self.weight, self.eps).to(x.dtype)
        numbers = x.float()
        return (numbers * _inverse_size(numbers, self.eps)).mul_(self.weight).to(x.dtype)


def _inverse_size(x: th.Tensor, eps: th.Tensor) -> th.Tensor:
    size = th.linalg.vector_norm(x, dim=-1, keepdim=True)
    return th.addcmul(eps, size, size, value=1 / x.shape[-1]).rsqrt_()


class _RootMeanSquare(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, eps: th.Tensor) -> th.Tensor:
        scale = _inverse_size(x, eps)
        normalised = x * scale
        ctx.save_for_backward(normalised, weight, scale)
        return normalised * weight

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        (gradient,) = gradients
        normalised, weight, scale = ctx.saved_tensors
        product = gradient * normalised
        along = (product @ weight / weight.shape[0]).unsqueeze(-1)
        of_normalised = (gradient * weight).addcmul_(normalised, along, value=-1)
        return of_normalised.mul_(scale), product.flatten(0, -2).sum(0), None


class LayerNorm(nn.LayerNorm):
    """As DreamerV2 and the DreamerV3 of 2023 have it."""

    def __init__(self, size: int, eps: float = 1e-3) -> None:
        super().__init__(size, eps=eps)


class SiLU(nn.SiLU):
    """Of what nobody else needs: in its place, where no gradients are needed."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.silu(x, inplace=not th.is_grad_enabled())


Norm = Callable[[int], nn.Module]

NORMS: dict[str, Norm] = {"rms": RMSNorm, "layer": LayerNorm, "none": lambda size: nn.Identity()}
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "elu": nn.ELU, "relu": nn.ReLU}


class Layer(nn.Sequential):
    """A linear map, a norm and an activation."""

    def __init__(self, inputs: int, outputs: int, norm: str = "rms", activation: str = "silu") -> None:
        super().__init__(Linear(inputs, outputs), NORMS[norm](outputs), ACTIVATIONS[activation]())


class MLP(nn.Sequential):
    """
    :param inputs: columns in
    :param units: of every layer
    :param layers: how many
    :param norm: ``"rms"``, ``"layer"`` or ``"none"``
    :param activation: ``"silu"``, ``"elu"`` or ``"relu"``
    """

    def __init__(self, inputs: int, units: int, layers: int, norm: str = "rms", activation: str = "silu") -> None:
        super().__init__(*(Layer(inputs if i == 0 else units, units, norm, activation) for i in range(layers)))
        self.outputs = units if layers else inputs


def symlog(x: th.Tensor) -> th.Tensor:
    """``sign(x) ln(1 + |x|)`` (DreamerV3)."""
    return x.sign() * x.abs().log1p()


def symexp(x: th.Tensor) -> th.Tensor:
    """The inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()
