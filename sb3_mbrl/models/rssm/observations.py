"""Observations into an RSSM and out of it: vectors, images, and dictionaries of both."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import nn

from sb3_mbrl.contracts import Obs, UnsupportedSpace
from sb3_mbrl.networks.convolutions import ImageDecoder, ImageEncoder, halved_sizes, image_error
from sb3_mbrl.networks.layers import MLP, Linear, symlog
from sb3_mbrl.networks.outputs import BernoulliOutput, OneHotOutput, Output, SymlogOutput
from sb3_mbrl.spaces import SpaceCodec, unsupported_by_vectors


def has_image(space: spaces.Space) -> bool:
    """Whether there is an image in it, channels first or last: ``Box(0, 255, ..., uint8)`` of three axes."""
    children = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(child, spaces.Box) and is_image_space(child, check_channels=False) for child in children)


def _looks_like_an_image(space: spaces.Box) -> bool:
    return len(space.shape) == 3 and min(space.shape) in (1, 3, 4) and sorted(space.shape)[1] >= 8


class Layout:
    """
    Which keys of an observation are images, and what the columns of the rest are.

    :param space: ``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a ``Dict`` of these; images channels first, as
        Stable-Baselines3's environments have them after ``VecTransposeImage``
    :raises UnsupportedSpace: for any other space
    """

    def __init__(self, space: spaces.Space) -> None:
        self.space = space
        self.single = not isinstance(space, spaces.Dict)
        children: dict[str, spaces.Space] = {"obs": space} if not isinstance(space, spaces.Dict) else dict(space.spaces)
        self.keys = list(children)
        """The keys in the order of the space, which need not be alphabetical"""
        self.images: dict[str, tuple[int, int, int]] = {}
        vectors: dict[str, spaces.Space] = {}
        for key, child in children.items():
            if isinstance(child, spaces.Box) and is_image_space(child, check_channels=False):
                if not is_image_space_channels_first(child):
                    raise UnsupportedSpace(
                        f"{key}: images of the shape {child.shape} have their channels last: wrap the environment in "
                        "VecTransposeImage, as Stable-Baselines3's classes do by themselves"
                    )
                halved_sizes(*child.shape[1:])
                self.images[key] = (int(child.shape[0]), int(child.shape[1]), int(child.shape[2]))
            elif reason := unsupported_by_vectors(child):
                raise UnsupportedSpace(f"{key}: {reason}")
            else:
                if isinstance(child, spaces.Box) and _looks_like_an_image(child):
                    warnings.warn(
                        f"{key} has the shape of an image, {child.shape}, but not its numbers, which are bytes from 0 to 255: "
                        f"the model sees {int(np.prod(child.shape))} separate numbers. If it is an image, give it as Box(0, "
                        f"255, {child.shape}, uint8).",
                        stacklevel=2,
                    )
                vectors[key] = child
        self.codec = SpaceCodec(spaces.Dict(vectors)) if vectors else None
        self.vectors = [key for key, child in vectors.items() if isinstance(child, spaces.Box)]
        """Keys of vectors of numbers; what else is not an image has categories"""

    def split(self, obs: Obs) -> tuple[dict[str, th.Tensor], th.Tensor | None]:
        """Images by key, ``(B, C, H, W)``, and everything else encoded, ``(B, D)``."""
        found: dict[str, Any] = {"obs": obs} if not isinstance(obs, dict) else dict(obs)
        images = {key: found[key] for key in self.images}
        rest: Any = {key: value for key, value in found.items() if key not in images}
        return images, None if self.codec is None else self.codec.encode(rest)

    def join(self, images: dict[str, th.Tensor], vector: th.Tensor | None) -> Obs:
        """Back to a member of the space; images from 0 to 1."""
        parts: dict[str, th.Tensor] = {key: (value.clamp(0, 1) * 255).round().to(th.uint8) for key, value in images.items()}
        if self.codec is not None and vector is not None:
            parts |= self.codec.decode(self.codec.project(vector))
        return parts["obs"] if self.single else {key: parts[key] for key in self.keys}


class Encoder(nn.Module):
    """
    :param layout: of the observations
    :param units: of the layers on vectors
    :param layers: how many
    :param depth: of the convolutions
    :param squash: whether numbers go through symlog
    :param style: ``norm`` and ``activation`` of the layers
    """

    squashed: th.Tensor

    def __init__(self, layout: Layout, units: int, layers: int, depth: int, *, squash: bool = True, **style: str) -> None:
        super().__init__()
        self.layout = layout
        encoders = [ImageEncoder(shape, depth) for shape in layout.images.values()]
        self.images = nn.ModuleList(encoders)  # in the order of the layout; not every key can be the name of a module
        self.vector = None if layout.codec is None else MLP(layout.codec.dim, units, layers, **style)
        self.outputs = sum(encoder.outputs for encoder in encoders)
        if layout.codec is not None and self.vector is not None:
            self.outputs += self.vector.outputs
            self.register_buffer("squashed", layout.codec.mask("continuous") & squash, persistent=False)

    def forward(self, obs: Obs) -> th.Tensor:
        """``(B, outputs)``."""
        images, vector = self.layout.split(obs)
        parts = [encoder(image) for encoder, image in zip(self.images, images.values(), strict=True)]
        if self.vector is not None and vector is not None:
            parts.append(self.vector(th.where(self.squashed, symlog(vector), vector)))
        return th.cat(parts, -1)


class Decoder(nn.Module):
    """
    :param layout: of the observations
    :param deter: numbers of the deterministic state
    :param stoch: numbers of the stochastic state
    :param units: of the layers on vectors
    :param layers: how many
    :param depth: of the convolutions
    :param blocks: of the images' first layer
    :param output: what the columns of a vector mean, where these are numbers
    :param style: ``norm`` and ``activation`` of the layers
    """

    def __init__(
        self,
        layout: Layout,
        deter: int,
        stoch: int,
        units: int,
        layers: int,
        depth: int,
        blocks: int,
        *,
        output: Callable[[tuple[int, ...]], Output] = SymlogOutput,
        **style: str,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.images = nn.ModuleList(
            ImageDecoder(shape, deter, stoch, depth, units, blocks) for shape in layout.images.values()
        )
        self.body: MLP | None = None
        self.outputs: list[Output] = []
        if layout.codec is not None:
            self.body = MLP(deter + stoch, units, layers, **style)
            for group in layout.codec.groups:
                size = group.stop - group.start
                kinds: dict[str, Output] = {"categorical": OneHotOutput(size), "binary": BernoulliOutput((size,))}
                self.outputs.append(kinds.get(group.kind) or output((size,)))
            self.heads = nn.ModuleList(Linear(self.body.outputs, output.size) for output in self.outputs)

    def losses(self, deter: th.Tensor, stoch: th.Tensor, obs: Obs) -> dict[str, th.Tensor]:
        """``(B,)`` for every key of the observation: how badly it is reconstructed."""
        images, vector = self.layout.split(obs)
        decoders = zip(self.images, images.items(), strict=True)
        found = {key: image_error(decoder(deter, stoch), image) for decoder, (key, image) in decoders}
        if self.body is not None and vector is not None and self.layout.codec is not None:
            hidden = self.body(th.cat([deter, stoch], -1))
            for group, output, head in zip(self.layout.codec.groups, self.outputs, self.heads, strict=True):
                loss = output.loss(head(hidden), vector[:, group.columns])
                found[str(group.key)] = found.get(str(group.key), 0.0) + loss
        return found

    def forward(self, deter: th.Tensor, stoch: th.Tensor) -> Obs:
        """A member of the observation space."""
        images = {key: decoder(deter, stoch) for key, decoder in zip(self.layout.images, self.images, strict=True)}
        if self.body is None:
            return self.layout.join(images, None)
        hidden = self.body(th.cat([deter, stoch], -1))
        means = [output.mean(head(hidden)) for output, head in zip(self.outputs, self.heads, strict=True)]
        return self.layout.join(images, th.cat(means, -1))
