"""Layers: initialisation, linear and block-diagonal maps, norms, multilayer perceptrons, symlog."""

import math
from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

INIT_STD = 1.1368
"""
The standard deviation of initial weights, times ``sqrt(1 / fan_in)``, before the normal distribution is truncated at two of
them; after truncation it is 1 (DreamerV3's code)
"""


ROWS_AT_A_TIME = 1024
"""The rows of a chunk on a CPU: few enough that a layer's outputs are still in the cache when the next layer reads them"""


def chunks(rows: th.Tensor) -> tuple[th.Tensor, ...]:
    """
    Cut rows into chunks that suit the device.

    :param rows: ``(..., N)``
    :return: ``(B, N)`` each, :data:`ROWS_AT_A_TIME` rows on a CPU, which halves the time of wide outputs; all rows on a GPU
    """
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.split(ROWS_AT_A_TIME) if rows.device.type == "cpu" else (flat,)


def init_weight(weight: th.Tensor, fan_in: int, scale: float = 1.0) -> None:
    """
    Fill a weight with normal values, truncated at two standard deviations of ``INIT_STD * sqrt(1 / fan_in)``.

    :param weight: overwritten in place
    :param fan_in: the number of inputs of each output
    :param scale: a factor for all values; 0 gives zeros, for heads that begin by predicting nothing
    """
    if scale == 0.0:
        nn.init.zeros_(weight)
        return
    std = INIT_STD * math.sqrt(1.0 / fan_in)
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
    with th.no_grad():
        weight.mul_(scale)


class Linear(nn.Linear):
    """
    A linear map with truncated normal weights (:func:`init_weight`) and biases of 0.

    :param inputs: the number of inputs
    :param outputs: the number of outputs
    :param scale: the scale of the initial weights
    :param bias: whether there are biases
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
    A linear map with a block-diagonal matrix: every block of outputs depends on its own block of inputs.

    The initial weights are scaled by the inputs of all blocks, as in DreamerV3's code, so they are smaller than those of
    separate maps would be.

    :param inputs: the number of inputs of all blocks together
    :param outputs: the number of outputs of all blocks together
    :param blocks: the number of blocks
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
        """Map ``(B, inputs)`` to ``(B, outputs)``."""
        # Plainly: cat([x_g @ W_g for each block g]) + bias. The blocks are the batch of one matrix product.
        grouped = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        return th.bmm(grouped, self.weight).transpose(0, 1).flatten(1) + self.bias


class RMSNorm(nn.Module):
    """
    A root mean square norm over the last axis: ``x / sqrt(mean(x^2) + eps) * weight``, without a shift.

    It is computed in float32, whatever the dtype of the input. On a CPU it is several times faster than torch's, whose
    backward pass is made of a dozen operations.

    :param size: the number of columns
    :param eps: a small number, for rows that are nearly zero
    """

    def __init__(self, size: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(size))
        # A tensor, since adding a Python number costs as much as a small layer on a CPU.
        self.register_buffer("eps", th.tensor(eps), persistent=False)

    eps: th.Tensor

    def forward(self, x: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            return _RMSNorm.apply(x.float(), self.weight, self.eps).to(x.dtype)
        values = x.float()
        return (values * _inverse_rms(values, self.eps)).mul_(self.weight).to(x.dtype)


def _inverse_rms(x: th.Tensor, eps: th.Tensor) -> th.Tensor:
    """Compute ``(x.square().mean(-1, keepdim=True) + eps).rsqrt()``, from the norm of the rows: one pass instead of two."""
    norm = th.linalg.vector_norm(x, dim=-1, keepdim=True)
    return th.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _RMSNorm(th.autograd.Function):
    """
    The norm with a backward pass of its own.

    With ``s = 1 / sqrt(mean(x^2) + eps)``, ``n = s x`` and the gradient ``g`` of ``y = n w``::

        dy/dw:  sum over rows of (g n)
        dy/dx:  s (g w - n mean(g w n))

    The second term takes off the part of the gradient along ``n``, in which the norm cannot move.
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, eps: th.Tensor) -> th.Tensor:
        scale = _inverse_rms(x, eps)
        normalised = x * scale
        ctx.save_for_backward(normalised, weight, scale)
        return normalised * weight

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> Any:
        (gradient,) = gradients
        normalised, weight, scale = ctx.saved_tensors
        product = gradient * normalised
        along = (product @ weight / weight.shape[0]).unsqueeze(-1)  # mean(g w n)
        gradient_x = (gradient * weight).addcmul_(normalised, along, value=-1).mul_(scale)
        return gradient_x, product.flatten(0, -2).sum(0), None


class LayerNorm(nn.LayerNorm):
    """A layer norm with the ``eps`` of DreamerV2 and of DreamerV3 in 2023."""

    def __init__(self, size: int, eps: float = 1e-3) -> None:
        super().__init__(size, eps=eps)


class SiLU(nn.SiLU):
    """A SiLU that overwrites its input when gradients are off; nothing else may hold that input."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.silu(x, inplace=not th.is_grad_enabled())


Norm = Callable[[int], nn.Module]
"""The constructor of a norm, from the number of columns"""

NORMS: dict[str, Norm] = {"rms": RMSNorm, "layer": LayerNorm, "none": lambda size: nn.Identity()}
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "elu": nn.ELU, "relu": nn.ReLU}


class Layer(nn.Sequential):
    """A linear map, a norm and an activation."""

    def __init__(self, inputs: int, outputs: int, norm: str = "rms", activation: str = "silu") -> None:
        super().__init__(Linear(inputs, outputs), NORMS[norm](outputs), ACTIVATIONS[activation]())


class MLP(nn.Sequential):
    """
    A multilayer perceptron of equally wide layers; without layers, the identity.

    :param inputs: the number of inputs
    :param units: the units of every layer
    :param layers: the number of layers
    :param norm: ``"rms"``, ``"layer"`` or ``"none"``
    :param activation: ``"silu"``, ``"elu"`` or ``"relu"``
    """

    def __init__(self, inputs: int, units: int, layers: int, norm: str = "rms", activation: str = "silu") -> None:
        super().__init__(*(Layer(inputs if i == 0 else units, units, norm, activation) for i in range(layers)))
        self.outputs = units if layers else inputs
        """The number of outputs"""


def symlog(x: th.Tensor) -> th.Tensor:
    """Compute ``sign(x) ln(1 + |x|)`` (DreamerV3)."""
    return x.sign() * x.abs().log1p()


def symexp(x: th.Tensor) -> th.Tensor:
    """Compute ``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()
