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


def _looks_like_an_image(space: spaces.Box) -> bool:
    return len(space.shape) == 3 and min(space.shape) in (1, 3, 4) and sorted(space.shape)[1] >= 8


class Layout:
    """
    The parts of an observation: images by key, and everything else as the columns of one vector.

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
                        f"{key} has the shape of an image, {child.shape}, but not its values, which are bytes from 0 to 255: "
                        f"the model sees {int(np.prod(child.shape))} separate numbers. If it is an image, give it as Box(0, "
                        f"255, {child.shape}, uint8).",
                        stacklevel=2,
                    )
                vectors[key] = child
        self.codec = SpaceCodec(spaces.Dict(vectors)) if vectors else None
        self.vectors = [key for key, child in vectors.items() if isinstance(child, spaces.Box)]
        """The keys of vectors of continuous values; other keys without an image are categorical or binary"""

    def split(self, obs: Obs) -> tuple[dict[str, th.Tensor], th.Tensor | None]:
        """Split observations into images by key, ``(B, C, H, W)``, and everything else encoded, ``(B, D)``."""
        parts: dict[str, Any] = {"obs": obs} if not isinstance(obs, dict) else dict(obs)
        images = {key: parts[key] for key in self.images}
        rest: Any = {key: value for key, value in parts.items() if key not in images}
        return images, None if self.codec is None else self.codec.encode(rest)

    def join(self, images: dict[str, th.Tensor], vector: th.Tensor | None) -> Obs:
        """
        Join decoded parts to a member of the space, with its keys in their order.

        :param images: by key, ``(B, C, H, W)`` from 0 to 1
        :param vector: everything else, ``(B, D)``; ``None`` where there are only images
        """
        parts: dict[str, th.Tensor] = {key: (value.clamp(0, 1) * 255).round().to(th.uint8) for key, value in images.items()}
        if self.codec is not None and vector is not None:
            parts |= self.codec.decode(self.codec.project(vector))
        return parts["obs"] if self.single else {key: parts[key] for key in self.keys}


class Encoder(nn.Module):
    """
    A network for each image and one for everything else, whose outputs are concatenated.

    :param layout: the parts of the observations
    :param units: the units of the layers on vectors
    :param layers: the number of layers on vectors
    :param depth: the depth of the convolutions
    :param squash: whether continuous values go through symlog
    :param style: ``norm`` and ``activation`` of the layers
    """

    squashed: th.Tensor
    """``(D,)`` booleans: the columns of vectors that go through symlog"""

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
        """Encode observations as ``(B, outputs)``."""
        images, vector = self.layout.split(obs)
        parts = [encoder(image) for encoder, image in zip(self.images, images.values(), strict=True)]
        if self.vector is not None and vector is not None:
            parts.append(self.vector(th.where(self.squashed, symlog(vector), vector)))
        return th.cat(parts, -1)


class Decoder(nn.Module):
    """
    A network for each image, and one for everything else with an output distribution for each group of columns.

    :param layout: the parts of the observations
    :param deter: the size of the deterministic state
    :param stoch: the number of elements of the stochastic state
    :param units: the units of the layers on vectors
    :param layers: the number of layers on vectors
    :param depth: the depth of the convolutions
    :param blocks: the number of blocks of the images' first layer
    :param output: the output distribution of continuous values, from their shape
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
        """
        Compute the reconstruction error of every key of the observation, ``(B,)`` each.

        :param deter: ``(B, deter)``
        :param stoch: ``(B, stoch)``
        :param obs: the observations to reconstruct, ``(B, ...)``
        """
        images, vector = self.layout.split(obs)
        decoders = zip(self.images, images.items(), strict=True)
        errors = {key: image_error(decoder(deter, stoch), image) for decoder, (key, image) in decoders}
        if self.body is not None and vector is not None and self.layout.codec is not None:
            hidden = self.body(th.cat([deter, stoch], -1))
            for group, output, head in zip(self.layout.codec.groups, self.outputs, self.heads, strict=True):
                loss = output.loss(head(hidden), vector[:, group.columns])
                errors[str(group.key)] = errors.get(str(group.key), 0.0) + loss
        return errors

    def forward(self, deter: th.Tensor, stoch: th.Tensor) -> Obs:
        """Decode states as members of the observation space."""
        images = {key: decoder(deter, stoch) for key, decoder in zip(self.layout.images, self.images, strict=True)}
        if self.body is None:
            return self.layout.join(images, None)
        hidden = self.body(th.cat([deter, stoch], -1))
        means = [output.mean(head(hidden)) for output, head in zip(self.outputs, self.heads, strict=True)]
        return self.layout.join(images, th.cat(means, -1))
