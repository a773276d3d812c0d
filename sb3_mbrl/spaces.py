"""One codec between SB3's spaces and the flat float vectors that world models learn on.

Observations are encoded as ``(B, D)`` floats: continuous values as they are, categories one-hot, bits as 0 and 1. Decoding
always gives a valid member of the space, in the layout of SB3's replay buffer (see :mod:`sb3_mbrl.contracts`).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_mbrl.contracts import Obs, UnsupportedSpace
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import Constant, tree_map

Kind = Literal["continuous", "categorical", "binary"]


@dataclass(frozen=True)
class Group:
    """
    Neighbouring columns of an encoded observation that are treated alike.

    :param key: the key of a ``Dict`` space (``None`` for any other space)
    :param kind: continuous values, one one-hot category (one group each), or independent bits
    :param start: the first column
    :param stop: the column after the last
    """

    key: str | None
    kind: Kind
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        """The columns as a slice"""
        return slice(self.start, self.stop)


SB3_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""The spaces that observations and actions of Stable-Baselines3 have, alone or (observations) as the parts of a ``Dict``"""


def parts_of(space: spaces.Space) -> list[tuple[str, spaces.Space]]:
    """
    List the parts of a space, each with ``"key 'name': "`` for messages: those of a ``Dict``, or the space itself.
    """
    if isinstance(space, spaces.Dict):
        return [(f"key {key!r}: ", child) for key, child in space.spaces.items()]
    return [("", space)]


def unknown_to_sb3(space: spaces.Space) -> str | None:
    """Explain why no algorithm of Stable-Baselines3 takes a space, e.g. ``key 'name': Text(...)``; ``None`` if some do."""
    for where, child in parts_of(space):
        if not isinstance(child, SB3_SPACES):
            nested = " (nested spaces are not supported)" if isinstance(child, (spaces.Dict, spaces.Tuple)) else ""
            return (
                f"{where}{child} is not one of Box, Discrete, MultiDiscrete and MultiBinary{nested}: turn it into one of them"
            )
    return None


def unusable_observations(space: spaces.Space) -> str | None:
    """Explain why nothing can learn from observations of a space: it is empty, or its keys are no text; else ``None``."""
    if isinstance(space, spaces.Dict):
        if not space.spaces:
            return f"{space} has no parts, so there is nothing to observe"
        for key in space.spaces:
            if not isinstance(key, str):
                return f"key {key!r} of {space} is of the type {type(key).__name__}: keys have to be text"
    for where, child in parts_of(space):
        if 0 in (child.shape or ()):
            return f"{where}{child} holds no numbers: leave it out of the observations"
    return None


def unusable_by_sb3(observation_space: spaces.Space, action_space: spaces.Space, extractor: Any) -> str | None:
    """
    Explain why networks of Stable-Baselines3 fail on spaces, some of them only after steps have been taken; ``None`` if they
    do not.

    :param extractor: the class of the policy's feature extractor; of those of Stable-Baselines3 it is known what they take
    """
    if isinstance(action_space, spaces.Discrete) and action_space.start != 0:
        return f"{action_space}: Stable-Baselines3 counts actions from 0: let the space start there"
    for where, child in parts_of(observation_space):
        if isinstance(child, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(child.start != 0):
            return f"{where}{child}: Stable-Baselines3 counts categories from 0: let the space start there"
        if isinstance(child, spaces.MultiDiscrete) and child.nvec.ndim != 1:
            return f"{where}{child} is nested: flatten it"
        if extractor in (FlattenExtractor, CombinedExtractor) and child.shape == () and isinstance(child, spaces.Box):
            return f"{where}{child} has no axis, and Stable-Baselines3 flattens from the second on: give it the shape (1,)"
        pictures = extractor is NatureCNN or (extractor is CombinedExtractor and is_image_space(child))
        if pictures and min((child.shape or ())[1:], default=36) < 36:
            return f"{where}{child}: the convolutions of Stable-Baselines3 take images from 36 x 36 pixels on: enlarge it"
    if extractor is CombinedExtractor and isinstance(observation_space, spaces.Dict):
        for key in observation_space.spaces:
            try:
                th.nn.ModuleDict({key: th.nn.Identity()})
            except (KeyError, TypeError) as error:
                return f"key {key!r} of {observation_space} cannot be the name of a network of torch ({error}): rename it"
    return _overflowing_count(observation_space, get_action_dim(action_space))


def _overflowing_count(space: spaces.Space, more: int) -> str | None:
    """Explain where Stable-Baselines3's number of inputs overflows: it adds up the categories in the type of ``nvec``."""
    for where, child in parts_of(space):
        if isinstance(child, spaces.MultiDiscrete) and spaces.utils.flatdim(space) + more > np.iinfo(child.nvec.dtype).max:
            return f"{where}{child} counts its categories in {child.nvec.dtype}, which overflows: give it dtype=np.int64"
    return None


def unsupported_by_vectors(space: spaces.Space) -> str | None:
    """Explain why a space cannot be encoded as a vector; ``None`` if it can."""
    if reason := unusable_observations(space):
        return reason
    if isinstance(space, spaces.Dict):
        reasons = [(key, unsupported_by_vectors(child)) for key, child in space.spaces.items()]
        return next((f"key {key!r}: {reason}" for key, reason in reasons if reason), None)
    if isinstance(space, spaces.Box):
        return f"{space} is an image; vector world models take flat observations" if is_image_space(space) else None
    if isinstance(space, spaces.MultiDiscrete) and len(space.nvec.shape) != 1:
        return f"{space} is nested"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return None
    return f"{type(space).__name__} is not one of Box, Discrete, MultiDiscrete, MultiBinary, Dict"


def vector_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of every vector model: the reason why it does not take the spaces, or ``None``."""
    if reason := unsupported_by_vectors(observation_space):
        return f"observation space: {reason}"
    if isinstance(action_space, spaces.Dict):
        return "action space: SB3 has no Dict actions"
    reason = unsupported_by_vectors(action_space)
    return f"action space: {reason}" if reason else None


def discrete_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of tabular models: the reason why they do not take the spaces, or ``None``."""
    for name, space in (("observations", observation_space), ("actions", action_space)):
        if not isinstance(space, spaces.Discrete):
            return f"it takes Discrete {name}, not {space}"
    return None


def _float32_bounds(space: spaces.Box) -> tuple[th.Tensor, th.Tensor]:
    """Return bounds in float32, rounded inwards so that clipped values are members of float64 spaces too."""
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)
    if whole_numbers(space):
        # numpy compares 64-bit integers as floats, which round 2^63 - 1 to 2^63.
        dtype: Any = space.dtype
        high = np.minimum(high, np.nextafter(np.float32(float(np.iinfo(dtype).max) + 1.0), np.float32(0)))
    return th.as_tensor(low), th.as_tensor(high)


def as_stored(obs: Obs) -> Obs:
    """Put observations of environments into the layout of SB3's replay buffer: those of a ``Discrete`` space as a column."""
    return tree_map(lambda leaf: leaf[:, None] if leaf.dim() == 1 else leaf, obs)


def outside(space: spaces.Space, values: np.ndarray | th.Tensor) -> np.ndarray:
    """
    Tell which rows have a category outside a ``Discrete`` or ``MultiDiscrete`` space. (Values beyond the bounds of a ``Box``
    are common, and harmless.)

    :param space: the space
    :param values: the rows, ``(B, ...)``
    :return: ``(B,)`` booleans
    """
    rows = np.asarray(values.cpu() if isinstance(values, th.Tensor) else values)
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return np.zeros(len(rows), dtype=bool)
    index: np.ndarray = rows.reshape(len(rows), -1)
    low: Any = int(space.start) if isinstance(space, spaces.Discrete) else space.start.reshape(1, -1)
    count: Any = int(space.n) if isinstance(space, spaces.Discrete) else space.nvec.reshape(1, -1)
    return np.any((index < low) | (index >= low + count), axis=1)


def torch_dtype(dtype: np.dtype) -> th.dtype:
    """
    Return the dtype of a space's tensors: float32 for every float, else the space's own, apart from unsigned integers that
    torch cannot calculate with: uint16 and uint32 are int64, and uint64, which no other integer holds, is float32.
    """
    if np.issubdtype(dtype, np.floating) or dtype == np.uint64:
        return th.float32
    if dtype == np.bool_:
        return th.bool
    return {"uint8": th.uint8, "int8": th.int8, "int16": th.int16, "int32": th.int32}.get(np.dtype(dtype).name, th.int64)


def as_tensor(array: np.ndarray) -> th.Tensor:
    """Convert an array of a space's dtype to a tensor of :func:`torch_dtype`, which shares its memory where it can."""
    if np.issubdtype(array.dtype, np.floating) or array.dtype == np.uint64:
        return th.as_tensor(array.astype(np.float32, copy=False))
    return th.as_tensor(array.astype(np.int64) if array.dtype in (np.uint16, np.uint32) else array)


class _LeafCodec:
    """A codec of one space that is not a ``Dict``, in the columns from ``start`` on."""

    def __init__(self, space: spaces.Space, key: str | None, start: int) -> None:
        if reason := unsupported_by_vectors(space):
            raise UnsupportedSpace(reason)
        self.space, self.start = space, start
        self.kind: Kind
        self.shape: tuple[int, ...]
        if isinstance(space, spaces.Box):
            self.kind, self.shape = "continuous", space.shape
            sizes = [int(np.prod(space.shape))]
            self.low, self.high = (Constant(bound) for bound in _float32_bounds(space))
        elif isinstance(space, spaces.MultiBinary):
            self.kind, self.shape = "binary", tuple(space.shape)
            sizes = [int(np.prod(space.shape))]
        else:
            categories: Any = space  # Discrete or MultiDiscrete
            nvec = [int(categories.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in categories.nvec]
            self.kind, self.shape, sizes = "categorical", (len(nvec),), nvec
            self.first = Constant(th.as_tensor(np.atleast_1d(categories.start), dtype=th.int64))
        edges = np.cumsum([start, *sizes]).tolist()
        self.groups = [Group(key, self.kind, a, b) for a, b in pairwise(edges)]
        self.stop = edges[-1]

    def encode(self, value: th.Tensor) -> th.Tensor:
        if self.kind != "categorical":
            return value.reshape(len(value), -1).float()
        index = value.reshape(len(value), -1).long() - self.first.on(value.device)
        # One group after the other, since torch's one-hot rows are of 64-bit integers.
        return th.cat(
            [th.nn.functional.one_hot(index[:, i], g.stop - g.start).float() for i, g in enumerate(self.groups)], dim=1
        )

    def project(self, flat: th.Tensor) -> th.Tensor:
        if self.kind == "continuous":
            low, high = self.low.on(flat.device).flatten(), self.high.on(flat.device).flatten()
            return flat[:, self.start : self.stop].clamp(low, high)
        if self.kind == "binary":
            return (flat[:, self.start : self.stop] > 0.5).to(flat.dtype)
        parts = [flat[:, g.columns] for g in self.groups]
        return th.cat([th.nn.functional.one_hot(p.argmax(1), p.shape[1]) for p in parts], dim=1).to(flat.dtype)

    def decode(self, flat: th.Tensor) -> th.Tensor:
        dtype = torch_dtype(self.space.dtype)  # type: ignore[arg-type]
        if self.kind == "categorical":
            index = th.stack([flat[:, g.columns].argmax(1) for g in self.groups], dim=1)
            return (index + self.first.on(flat.device)).to(dtype)
        value = flat[:, self.start : self.stop]
        if self.kind == "binary":
            return (value > 0.5).to(dtype).reshape(-1, *self.shape)
        if not np.issubdtype(self.space.dtype, np.floating):
            value = value.round()
        value = value.reshape(-1, *self.shape).clamp(self.low.on(flat.device), self.high.on(flat.device))
        return value.to(dtype)


class SpaceCodec:
    """
    A codec between observations and flat vectors.

    :param space: a ``Box`` (not an image), ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a ``Dict`` of these
    :raises UnsupportedSpace: for any other space
    """

    def __init__(self, space: spaces.Space) -> None:
        if reason := unsupported_by_vectors(space):
            raise UnsupportedSpace(reason)
        self.space = space
        self._leaves: dict[str | None, _LeafCodec] = {}
        stop = 0
        children = space.spaces.items() if isinstance(space, spaces.Dict) else [(None, space)]
        for key, child in children:
            self._leaves[key] = leaf = _LeafCodec(child, key, stop)
            stop = leaf.stop
        self.dim = stop
        """``D``: the number of columns"""
        self.groups = [group for leaf in self._leaves.values() for group in leaf.groups]
        """The groups of columns, in order"""
        self.names = [
            f"{group.key or 'obs'}[{column - group.start}]"
            for group in self.groups
            for column in range(group.start, group.stop)
        ]
        """The names of the columns, for messages and plots"""

    def mask(self, kind: Kind) -> th.Tensor:
        """Return a mask of the columns of one kind, ``(D,)`` booleans."""
        mask = th.zeros(self.dim, dtype=th.bool)
        for group in self.groups:
            mask[group.columns] = group.kind == kind
        return mask

    def encode(self, obs: Obs) -> th.Tensor:
        """
        Encode observations as vectors.

        :param obs: observations in the layout of SB3's replay buffer, ``(B, ...)``
        :return: vectors, ``(B, D)`` float32
        """
        if isinstance(obs, dict):
            return th.cat([leaf.encode(obs[key]) for key, leaf in self._leaves.items()], dim=1)  # type: ignore[index]
        return self._leaves[None].encode(obs)

    def project(self, flat: th.Tensor) -> th.Tensor:
        """Return the nearest valid encoded observations: values clipped to their bounds, categories one-hot, bits rounded."""
        return th.cat([leaf.project(flat) for leaf in self._leaves.values()], dim=1)

    def decode(self, flat: th.Tensor) -> Obs:
        """
        Decode vectors to observations.

        :param flat: vectors, ``(B, D)`` floats
        :return: valid members of the space in the layout of SB3's replay buffer, ``(B, ...)``
        """
        if None in self._leaves:
            return self._leaves[None].decode(flat)
        return {str(key): leaf.decode(flat) for key, leaf in self._leaves.items()}


def continuous_actions(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of planners that follow gradients: the reason why they do not take the spaces, or ``None``."""
    return None if isinstance(action_space, spaces.Box) else f"action space: a gradient needs Box actions, not {action_space}"


def discrete_actions(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of planners that search a tree of actions: the reason why they do not take the spaces, or ``None``."""
    fits = isinstance(action_space, spaces.Discrete)
    return None if fits else f"action space: a tree search needs Discrete actions, not {action_space}"


def differentiable_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """``supports`` of planners that also differentiate by the observation: the reason why not, or ``None``."""
    children = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    wrong = next((child for child in children if not isinstance(child, spaces.Box)), None)
    if wrong is not None:
        return f"observation space: derivatives need Box observations, not {wrong}"
    return continuous_actions(observation_space, action_space)


def has_image(space: spaces.Space) -> bool:
    """Tell whether a space has an image, channels first or last: ``Box(0, 255, ..., uint8)`` of three axes."""
    children = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(child, spaces.Box) and is_image_space(child, check_channels=False) for child in children)


def channels_first(space: spaces.Space) -> spaces.Space:
    """Turn an environment's observation space into that of SB3's algorithms: images, also in dictionaries, transposed."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: channels_first(child) for key, child in space.spaces.items()})
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def whole_numbers(space: spaces.Space) -> bool:
    """Tell whether actions are whole numbers of a ``Box``."""
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)


def left_behind_by_sb3(space: spaces.Space) -> bool:
    """
    Tell whether SB3's conversion of scaled actions misses a ``Box``: whole numbers, to which it gives fractions, and half
    precision, which it replaces by single precision beyond the bounds.
    """
    return whole_numbers(space) or (isinstance(space, spaces.Box) and space.dtype == np.float16)


def unusable_actions(space: spaces.Space) -> str | None:
    """Explain why a space leaves nothing to choose, or cannot be scaled as Stable-Baselines3 scales actions; else ``None``."""
    if not isinstance(space, SB3_SPACES):
        return f"{space} is not one of Box, Discrete, MultiDiscrete and MultiBinary, the actions of Stable-Baselines3"
    if 0 in (space.shape or ()):
        return f"{space} holds no numbers, so there is nothing to choose"
    if not isinstance(space, spaces.Box):
        return None
    if space.dtype == np.bool_:
        return f"{space}: actions are scaled to -1 to 1, which makes no sense for bool: use MultiBinary"
    if (space.low == space.high).any():
        where = np.argwhere(np.atleast_1d(space.low == space.high)).tolist()
        return (
            f"{space}: low and high are the same at {where}, so there is nothing to choose (and actions are scaled by "
            "their distance). Leave that number to the environment."
        )
    if np.issubdtype(space.dtype, np.floating):
        with np.errstate(over="ignore"):
            endless = ~np.isfinite((space.high - space.low).astype(np.float32))
        if endless.any():
            where = np.argwhere(np.atleast_1d(endless)).tolist()
            return (
                f"{space}: the distance between low and high at {where} is infinite, but actions are scaled by it: narrow them"
            )
    return None


def numbers_alone(space: spaces.Space, what: str, instead: str) -> SpaceCodec:
    """
    Return the codec of a space that has numbers alone, which a Gaussian can describe.

    :param space: an observation space
    :param what: the setting that needs numbers, for the error
    :param instead: the choices for other spaces
    :raises UnsupportedSpace: for spaces with categories or bits
    """
    codec = SpaceCodec(space)
    if any(group.kind != "continuous" for group in codec.groups):
        raise UnsupportedSpace(f"{what} draws from Gaussians, and {space} has categories or bits: take {instead}")
    return codec


class ActionCodec:
    """
    A codec between actions as SB3's replay buffer stores them, the inputs of networks, and the environment's units.

    :param space: a ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :raises UnsupportedSpace: for any other space
    """

    def __init__(self, space: spaces.Space) -> None:
        if isinstance(space, spaces.Dict):
            raise UnsupportedSpace("SB3 has no Dict actions")
        self.space = space
        self.continuous = isinstance(space, spaces.Box)
        self.whole = whole_numbers(space)
        """Whether actions are whole numbers of a ``Box``"""
        if reason := unusable_actions(space):
            raise UnsupportedSpace(reason)
        self._leaf = _LeafCodec(space, None, 0)
        self.dim = self._leaf.stop
        """The number of columns of an encoded action"""

    def encode(self, action: th.Tensor) -> th.Tensor:
        """Encode actions for networks, ``(B, dim)`` floats: scaled values as they are, categories one-hot, bits as 0 and 1."""
        return self._leaf.encode(action)

    def neutral(self) -> th.Tensor:
        """Return a valid action as the replay buffer stores it, ``(A,)``: a placeholder for actions that are not known."""
        if self._leaf.kind == "categorical":
            return self._leaf.first.value.clone()
        return th.zeros(self.dim, dtype=th.float32 if self.continuous else th.int64)

    def to_env(self, action: th.Tensor) -> th.Tensor:
        """Convert scaled actions ``(B, A)`` to the environment's units ``(B, *shape)``; discrete actions stay as they are."""
        if not isinstance(self.space, spaces.Box):
            return action
        low, high = self._bounds(action)
        return low + 0.5 * (action.reshape(-1, *self.space.shape) + 1.0) * (high - low)

    def to_numpy(self, action: th.Tensor) -> np.ndarray:
        """Convert scaled actions ``(B, A)`` to arrays for a real environment, ``(B, *shape)``: members of the space."""
        shape = (len(action), *(self.space.shape or ()))
        if self.whole:
            return self.unscaled(action.cpu().numpy().reshape(shape))
        actions = self.to_env(action).cpu().numpy().reshape(shape)
        if isinstance(self.space, spaces.Box):
            actions = np.clip(actions, self.space.low, self.space.high).astype(self.space.dtype)
        return actions

    def unscaled(self, scaled: np.ndarray) -> np.ndarray:
        """
        Convert scaled actions of a ``Box`` to members of the space: whole numbers are rounded.

        :param scaled: ``(..., *shape)``, from -1 to 1; values beyond are clipped
        :return: ``(..., *shape)`` of the space's dtype
        """
        low, high = self._exact_bounds()
        units = low + 0.5 * (np.clip(scaled, -1.0, 1.0).astype(np.float64) + 1.0) * (high - low)
        return np.clip(np.rint(units) if self.whole else units, low, high).astype(self.space.dtype)

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """Convert actions of a ``Box``, ``(..., *shape)``, to float32 from -1 to 1 without an overflow of the space's type."""
        low, high = self._exact_bounds()
        return (2.0 * (np.asarray(action).astype(np.float64) - low) / (high - low) - 1.0).astype(np.float32)

    def nearest(self, action: th.Tensor) -> th.Tensor:
        """Return the scaled actions nearest to given ones ``(B, A)`` that the environment can be given: whole numbers."""
        if not self.whole:
            return action
        rounded = self.scaled(self.to_numpy(action.detach()))
        return th.as_tensor(rounded, dtype=action.dtype, device=action.device).reshape(action.shape)

    def _exact_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds of a ``Box`` in double precision; those of integers that it does not hold are rounded inwards."""
        assert isinstance(self.space, spaces.Box)
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        if not self.whole:
            return low, high
        # Only 2^63 - 1 and 2^64 - 1 and their neighbours are rounded; a power of two does not fit the integer any more.
        top = np.nextafter(float(np.iinfo(self.space.dtype).max) + 1.0, 0.0)
        return low, np.minimum(high, top)

    def from_env(self, action: th.Tensor) -> th.Tensor:
        """Convert actions in the environment's units ``(B, *shape)`` to scaled ones ``(B, A)``; discrete ones to integers."""
        if not isinstance(self.space, spaces.Box):
            return action.reshape(len(action), -1)
        low, high = self._bounds(action)
        return (2.0 * (action - low) / (high - low) - 1.0).reshape(len(action), -1)

    def _bounds(self, like: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        assert isinstance(self.space, spaces.Box)
        dtype = like.dtype if like.is_floating_point() else th.float32
        return th.as_tensor(self.space.low, dtype=dtype, device=like.device), th.as_tensor(
            self.space.high, dtype=dtype, device=like.device
        )


def as_mask(mask: Any) -> th.Tensor:
    """
    Turn a mask of an environment or a user into booleans.

    :raises ValueError: for text, ``None`` and other values that are neither true nor false, NaN among them
    """
    if not isinstance(mask, th.Tensor):
        array = np.asarray(mask)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"action_mask is {mask!r}: give true where an action is allowed, else false")
        mask = th.as_tensor(array)
    if mask.is_floating_point() and not bool(mask.isfinite().all()):
        raise ValueError("action_mask holds NaN or infinity: give true where an action is allowed, else false")
    if mask.dtype != th.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            "action_mask holds numbers other than 0 and 1, such as probabilities or logits: give true where an action is "
            "allowed, else false"
        )
    return mask.bool()


def sample_actions(space: spaces.Space, n: int, generator: th.Generator | None, device: th.device) -> th.Tensor:
    """
    Draw random actions.

    :param space: a ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` space
    :param n: the number of actions
    :param generator: the source of randomness (``None``: torch's global one)
    :param device: the device of the result
    :return: uniform scaled values, or integers, ``(n, A)``
    """
    generator = on_device(generator, device)
    if isinstance(space, spaces.Box):
        uniform = 2.0 * th.rand(n, int(np.prod(space.shape)), generator=generator, device=device) - 1.0
        return ActionCodec(space).nearest(uniform) if whole_numbers(space) else uniform
    if isinstance(space, spaces.Discrete):
        counts, first = th.tensor([int(space.n)]), th.tensor([int(space.start)])
    elif isinstance(space, spaces.MultiDiscrete):
        counts, first = th.as_tensor(space.nvec).flatten(), th.as_tensor(space.start).flatten()
    elif isinstance(space, spaces.MultiBinary):
        counts, first = th.full((int(np.prod(space.shape)),), 2), th.zeros(1, dtype=th.long)
    else:
        raise TypeError(f"{space} is not an action space of Stable-Baselines3")
    uniform = th.rand(n, len(counts), generator=generator, device=device, dtype=th.float64)
    return (uniform * counts.to(device)).long() + first.to(device)
