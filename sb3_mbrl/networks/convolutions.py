"""Convolutions of DreamerV3, for images of any size: halved until a few pixels are left, and doubled back again."""

import math
from itertools import pairwise

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.networks.layers import BlockLinear, Layer, Linear, RMSNorm, init_weight

MIN_SIDE, MAX_SIDE = 3, 16
"""Of what is left of an image"""
MULTIPLES = (2, 3, 4, 4)
"""Channels of the stages, in units of ``depth``; the last goes on for bigger images"""


def halved_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """
    Height and width before and after every halving (rounded up): four, as the authors have, more where over :data:`MAX_SIDE`
    pixels would be left, fewer where less than :data:`MIN_SIDE` would.

    :raises UnsupportedSpace: for an image that is too small to be halved once
    """
    found = [(height, width)]
    while (min(found[-1]) + 1) // 2 >= MIN_SIDE and (len(found) <= len(MULTIPLES) or max(found[-1]) > MAX_SIDE):
        h, w = found[-1]
        found.append(((h + 1) // 2, (w + 1) // 2))
    if len(found) == 1:
        raise UnsupportedSpace(f"an image of {height} x {width} pixels is too small for convolutions: flatten it to a vector")
    return found


def channels(depth: int, stages: int) -> list[int]:
    """Of every stage of the encoder."""
    return [depth * MULTIPLES[min(i, len(MULTIPLES) - 1)] for i in range(stages)]


class Convolution(nn.Conv2d):
    """5 x 5, as many pixels out as in; truncated normal weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2)

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.in_channels * 25)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class _ChannelNorm(RMSNorm):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class ImageEncoder(nn.Module):
    """
    :param shape: channels, height, width
    :param depth: channels of the first stages, in units
    """

    def __init__(self, shape: tuple[int, int, int], depth: int) -> None:
        super().__init__()
        self.sizes = halved_sizes(*shape[1:])
        widths = [shape[0], *channels(depth, len(self.sizes) - 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(Convolution(a, b), nn.MaxPool2d(2, ceil_mode=True), _ChannelNorm(b), nn.SiLU())
            for a, b in pairwise(widths)
        )
        self.outputs = widths[-1] * self.sizes[-1][0] * self.sizes[-1][1]

    def forward(self, image: th.Tensor) -> th.Tensor:
        """``(B, C, H, W)`` from 0 to 255 to ``(B, outputs)``."""
        x = image.float() / 255 - 0.5
        for stage in self.stages:
            x = stage(x)
        return x.flatten(1)


class ImageDecoder(nn.Module):
    """
    :param shape: channels, height, width
    :param deter: numbers of the deterministic state
    :param stoch: numbers of the stochastic state
    :param depth: as of the encoder
    :param units: of the path from the stochastic state
    :param blocks: of the path from the deterministic state, fewer where these do not divide it
    """

    def __init__(self, shape: tuple[int, int, int], deter: int, stoch: int, depth: int, units: int, blocks: int) -> None:
        super().__init__()
        self.sizes = halved_sizes(*shape[1:])
        widths = [shape[0], *channels(depth, len(self.sizes) - 1)]
        self.start = (widths[-1], *self.sizes[-1])
        size = widths[-1] * self.sizes[-1][0] * self.sizes[-1][1]
        self.from_deter = BlockLinear(deter, size, math.gcd(blocks, math.gcd(deter, size)))
        self.from_stoch = nn.Sequential(Layer(stoch, 2 * units), Linear(2 * units, size))
        self.norm, self.activation = _ChannelNorm(widths[-1]), nn.SiLU()
        inner = widths[:0:-1]
        self.stages = nn.ModuleList(nn.Sequential(Convolution(a, b), _ChannelNorm(b), nn.SiLU()) for a, b in pairwise(inner))
        self.last = Convolution(inner[-1], shape[0])

    def forward(self, deter: th.Tensor, stoch: th.Tensor) -> th.Tensor:
        """``(B, C, H, W)`` from 0 to 1."""
        x = (self.from_deter(deter) + self.from_stoch(stoch)).unflatten(-1, self.start)
        x = self.activation(self.norm(x))
        for stage, side in zip([*self.stages, self.last], self.sizes[-2::-1], strict=True):
            # Nearest neighbours, doubled; an odd side loses its last line, which the encoder's rounding up had added.
            x = stage(x.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : side[0], : side[1]])
        return th.sigmoid(x)


def image_error(predicted: th.Tensor, target: th.Tensor) -> th.Tensor:
    """``(B,)``: the squared error in units of 0 to 1, summed over pixels and channels."""
    return F.mse_loss(predicted.float(), target.float() / 255, reduction="none").flatten(1).sum(1)
