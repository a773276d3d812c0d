"""DreamerV3's convolutions for images of any size: the encoder halves them to a few pixels, the decoder doubles them back."""

import math
from itertools import pairwise

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.networks.layers import BlockLinear, Layer, Linear, RMSNorm, init_weight

MIN_SIDE, MAX_SIDE = 3, 16
"""The smallest and the largest height or width of the last stage"""
MULTIPLES = (2, 3, 4, 4)
"""The channels of the stages, in units of ``depth``; further stages, for bigger images, have as many as the last"""


def halved_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """
    Compute height and width before and after every halving, which rounds up.

    There are four halvings, as in the authors' code, more where over :data:`MAX_SIDE` pixels would be left, and fewer where
    less than :data:`MIN_SIDE` would.

    :raises UnsupportedSpace: for an image that is too small to be halved once
    """
    sizes = [(height, width)]
    while (min(sizes[-1]) + 1) // 2 >= MIN_SIDE and (len(sizes) <= len(MULTIPLES) or max(sizes[-1]) > MAX_SIDE):
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    if len(sizes) == 1:
        raise UnsupportedSpace(f"an image of {height} x {width} pixels is too small for convolutions: flatten it to a vector")
    return sizes


def channels(depth: int, stages: int) -> list[int]:
    """Compute the output channels of every stage of the encoder."""
    return [depth * MULTIPLES[min(i, len(MULTIPLES) - 1)] for i in range(stages)]


class Convolution(nn.Conv2d):
    """A convolution of 5 x 5 that keeps height and width, with truncated normal weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2)

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.in_channels * 25)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _ChannelNorm(RMSNorm):
    """A root mean square norm over the channels of each pixel."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class ImageEncoder(nn.Module):
    """
    A stack of convolutions, each followed by max-pooling that halves the image, a norm and SiLU.

    :param shape: channels, height and width of an image
    :param depth: the unit of the numbers of channels (:data:`MULTIPLES`)
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
        """Encode images ``(B, C, H, W)`` with values from 0 to 255 as ``(B, outputs)``."""
        x = image.float() / 255 - 0.5
        for stage in self.stages:
            x = stage(x)
        return x.flatten(1)


class ImageDecoder(nn.Module):
    """
    A map from a latent state to the smallest image, and a stack of convolutions, each of which doubles it.

    :param shape: channels, height and width of an image
    :param deter: the size of the deterministic state
    :param stoch: the number of elements of the stochastic state
    :param depth: the unit of the numbers of channels, as in the encoder
    :param units: half the width of the hidden layer from the stochastic state
    :param blocks: the number of blocks of the map from the deterministic state; fewer where they do not divide it
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
        """Decode states as images ``(B, C, H, W)`` with values from 0 to 1."""
        x = (self.from_deter(deter) + self.from_stoch(stoch)).unflatten(-1, self.start)
        x = self.activation(self.norm(x))
        for stage, (height, width) in zip([*self.stages, self.last], self.sizes[-2::-1], strict=True):
            # Every pixel is repeated twice in both directions (nearest-neighbour upsampling). Where the encoder had rounded an
            # odd height or width up, the last line is cut off.
            x = stage(x.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width])
        return th.sigmoid(x)


def image_error(predicted: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    Compute the squared error, summed over pixels and channels: ``(B,)``.

    :param predicted: values from 0 to 1
    :param target: values from 0 to 255
    """
    return F.mse_loss(predicted.float(), target.float() / 255, reduction="none").flatten(1).sum(1)
