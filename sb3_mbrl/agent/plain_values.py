"""Values as JSON and plain arrays, which are read without unpickling anything.

SB3 pickles what JSON has no value for: spaces, schedules, noise, classes. :func:`encode` writes these as tagged JSON, and
:func:`decode` makes them again from a fixed list of classes. A text never chooses what is imported or called: classes of
libraries are looked up among the modules that are imported already, and only those of the kinds that SB3's settings hold.
"""

import base64
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import noise, utils
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_mbrl.plugins.selection import imported_attribute

TAG = "__plain__"
"""The key of a dictionary that describes a value which JSON does not have"""

ARRAY_KINDS = "biufcSUmM"
"""The kinds of arrays (``dtype.kind``) that are stored as their bytes"""

_OBJECTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        spaces.Box,
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
        spaces.Dict,
        spaces.Tuple,
        spaces.Text,
        utils.FloatSchedule,
        utils.LinearSchedule,
        utils.ConstantSchedule,
        noise.NormalActionNoise,
        noise.OrnsteinUhlenbeckActionNoise,
        noise.VectorizedActionNoise,
        RunningMeanStd,
    )
}
"""The classes whose instances are stored as their attributes"""

_ENUMS: dict[str, type[Enum]] = {kind.__name__: kind for kind in (TrainFrequencyUnit, GoalSelectionStrategy)}

_GENERATORS: dict[str, type] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}

_KINDS_OF_CLASSES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (th.nn.Module, ("torch.nn.modules.activation",)),
    (BaseFeaturesExtractor, ("stable_baselines3", "sb3_contrib", "sb3_mbrl")),
    (BasePolicy, ("stable_baselines3", "sb3_contrib", "sb3_mbrl")),
    (th.optim.Optimizer, ("torch.optim", "stable_baselines3", "sb3_contrib", "sb3_mbrl")),
    (ReplayBuffer, ("stable_baselines3", "sb3_contrib", "sb3_mbrl")),
)
"""The classes that may be named: the class that they are derived from, and the packages that they may be of"""


class NotPlainError(TypeError):
    """A value that can only be pickled."""


class Arrays:
    """
    The arrays of a value, which are stored apart from its JSON.

    :param stored: the arrays by name
    """

    def __init__(self, stored: MutableMapping[str, np.ndarray] | Mapping[str, np.ndarray]) -> None:
        self._stored = stored

    def put(self, array: np.ndarray) -> dict[str, Any]:
        """Store an array, and return the JSON that refers to it."""
        assert isinstance(self._stored, MutableMapping)
        name = f"array_{len(self._stored)}"
        self._stored[name] = array
        return {"name": name}

    def get(self, reference: Mapping[str, Any]) -> np.ndarray:
        """Return the array that JSON refers to; a copy, which may be changed."""
        return np.array(self._stored[reference["name"]])


class InlineArrays(Arrays):
    """Arrays within the JSON, as their bytes in base 64."""

    def __init__(self) -> None:
        super().__init__({})

    def put(self, array: np.ndarray) -> dict[str, Any]:
        content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
        return {"dtype": array.dtype.str, "shape": list(array.shape), "data": content}

    def get(self, reference: Mapping[str, Any]) -> np.ndarray:
        dtype = _plain_dtype(reference["dtype"])
        return np.frombuffer(base64.b64decode(reference["data"]), dtype).reshape(reference["shape"]).copy()


def encode(value: Any, arrays: Arrays | None = None, where: str = "value") -> Any:
    """
    Turn a value into JSON values.

    :param value: nested dictionaries, lists, tuples, sets and queues of numbers, text, arrays, tensors, spaces, schedules,
        noise, random generators, and classes of SB3 and PyTorch
    :param arrays: where arrays are stored; ``None``: within the JSON
    :param where: the name of the value, for the error
    :raises NotPlainError: for anything else; the message names the place
    """
    return _Encoder(arrays or InlineArrays()).encode(value, where)


def decode(value: Any, arrays: Arrays | None = None) -> Any:
    """
    Take back what :func:`encode` gave. Nothing is unpickled or imported.

    :param value: the JSON values
    :param arrays: where arrays are stored; ``None``: within the JSON
    :raises ValueError: for a value that :func:`encode` does not write
    """
    try:
        return _Decoder(arrays or InlineArrays()).decode(value)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"it holds a value that is not one of sb3-mbrl's plain values: {error!r}") from error


class _Encoder:
    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def encode(self, value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return self._all(value, where)
        if kind is dict:
            if all(isinstance(key, str) for key in value) and TAG not in value:
                return {key: self.encode(child, f"{where}[{key!r}]") for key, child in value.items()}
            return {TAG: "dict", "items": [self._all(item, where) for item in value.items()]}
        if kind is OrderedDict:
            return {TAG: "OrderedDict", "items": [self._all(item, where) for item in value.items()]}
        if isinstance(value, TrainFreq):
            return {TAG: "TrainFreq", "items": [value.frequency, value.unit.value]}
        if kind in (tuple, set, frozenset):
            return {TAG: kind.__name__, "items": self._all(value, where)}
        if kind is deque:
            return {TAG: "deque", "maxlen": value.maxlen, "items": self._all(value, where)}
        for encoder in (self._array, self._tensor, self._object, self._class):
            encoded = encoder(value, where)
            if encoded is not None:
                return encoded
        raise NotPlainError(f"{where} is {value!r}, a {kind.__module__}.{kind.__qualname__}, which can only be pickled")

    def _all(self, values: Any, where: str) -> list[Any]:
        return [self.encode(child, f"{where}[{index}]") for index, child in enumerate(values)]

    def _array(self, value: Any, where: str) -> Any:
        if isinstance(value, np.generic) and value.dtype.kind in ARRAY_KINDS:
            return {TAG: "number", **InlineArrays().put(np.asarray(value))}
        if type(value) is not np.ndarray:
            return None
        if value.dtype.kind == "O":
            return {TAG: "objects", "shape": list(value.shape), "items": self._all(value.reshape(-1).tolist(), where)}
        if value.dtype.kind not in ARRAY_KINDS:
            raise NotPlainError(f"{where} is an array of {value.dtype}, which can only be pickled")
        return {TAG: "array", **self.arrays.put(value)}

    def _tensor(self, value: Any, where: str) -> Any:
        if not isinstance(value, th.Tensor):
            return None
        content = value.detach().cpu().contiguous()
        # NumPy has no bfloat16: all tensors are stored as their bytes.
        array = content.reshape(-1).view(th.uint8).numpy() if content.numel() else np.zeros(0, np.uint8)
        name = str(content.dtype).removeprefix("torch.")
        return {TAG: "tensor", "of": name, "size": list(content.shape), "bytes": self.arrays.put(array)}

    def _object(self, value: Any, where: str) -> Any:
        kind = type(value)
        if _OBJECTS.get(kind.__name__) is kind:
            state = {name: self.encode(child, f"{where}.{name}") for name, child in vars(value).items()}
            return {TAG: "object", "of": kind.__name__, "state": state}
        if _ENUMS.get(kind.__name__) is kind:
            return {TAG: "enum", "of": kind.__name__, "member": value.name}
        if kind is np.random.Generator and type(value.bit_generator).__name__ in _GENERATORS:
            state = self.encode(value.bit_generator.state, where)
            return {TAG: "generator", "of": type(value.bit_generator).__name__, "state": state}
        if isinstance(value, np.dtype) and value.kind in ARRAY_KINDS:
            return {TAG: "dtype", "of": value.str}
        if isinstance(value, th.device):
            return {TAG: "device", "of": str(value)}
        return None

    def _class(self, value: Any, where: str) -> Any:
        if not isinstance(value, type):
            return None
        if issubclass(value, np.generic) and np.dtype(value).kind in ARRAY_KINDS:
            return {TAG: "scalar type", "of": np.dtype(value).str}
        path = f"{value.__module__}:{value.__qualname__}"
        return {TAG: "class", "of": path} if _named_class(path) is value else None


class _Decoder:
    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.makers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "dict": lambda it: {self.decode(key): self.decode(child) for key, child in it["items"]},
            "OrderedDict": lambda it: OrderedDict((self.decode(key), self.decode(child)) for key, child in it["items"]),
            "tuple": lambda it: tuple(self._all(it)),
            "set": lambda it: set(self._all(it)),
            "frozenset": lambda it: frozenset(self._all(it)),
            "deque": lambda it: deque(self._all(it), maxlen=it["maxlen"]),
            "TrainFreq": lambda it: TrainFreq(it["items"][0], TrainFrequencyUnit(it["items"][1])),
            "number": lambda it: InlineArrays().get(it)[()],
            "array": lambda it: self.arrays.get(it),
            "objects": self._objects,
            "tensor": self._tensor,
            "object": self._object,
            "enum": lambda it: _ENUMS[it["of"]][it["member"]],
            "generator": self._generator,
            "dtype": lambda it: _plain_dtype(it["of"]),
            "device": lambda it: th.device(it["of"]),
            "scalar type": lambda it: _plain_dtype(it["of"]).type,
            "class": self._class,
        }

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(child) for child in value]
        if not isinstance(value, dict):
            return value
        if TAG not in value:
            return {key: self.decode(child) for key, child in value.items()}
        if value[TAG] not in self.makers:
            raise ValueError(f"it holds a value of the kind {value[TAG]!r}, which this version does not know")
        return self.makers[value[TAG]](value)

    def _all(self, described: Mapping[str, Any]) -> list[Any]:
        return [self.decode(child) for child in described["items"]]

    def _objects(self, described: Mapping[str, Any]) -> np.ndarray:
        items = self._all(described)
        array = np.empty(len(items), dtype=object)
        for index, item in enumerate(items):  # at once, NumPy would take lists for further axes
            array[index] = item
        return array.reshape(described["shape"])

    def _tensor(self, described: Mapping[str, Any]) -> th.Tensor:
        dtype = vars(th).get(described["of"])
        if not isinstance(dtype, th.dtype):
            raise ValueError(f"{described['of']!r} is no type of tensors")
        content = self.arrays.get(described["bytes"])
        flat = th.from_numpy(content).view(dtype) if content.size else th.empty(0, dtype=dtype)
        return flat.reshape(described["size"])

    def _object(self, described: Mapping[str, Any]) -> Any:
        made: Any = object.__new__(_OBJECTS[described["of"]])
        vars(made).update({name: self.decode(child) for name, child in described["state"].items()})
        return made

    def _generator(self, described: Mapping[str, Any]) -> np.random.Generator:
        bits = _GENERATORS[described["of"]]()
        bits.state = self.decode(described["state"])
        return np.random.Generator(bits)

    def _class(self, described: Mapping[str, Any]) -> type:
        found = _named_class(described["of"])
        if found is None:
            raise ValueError(
                f"it names the class {described['of']!r}, which is not imported, or none of the kinds that a plain file may "
                "name (policies, features extractors, activations, optimisers and replay buffers of PyTorch, SB3 and sb3-mbrl)"
            )
        return found


def _plain_dtype(name: Any) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"{name!r} is no type of plain arrays")
    return dtype


def _named_class(path: str) -> type | None:
    """Find a class of one of the kinds that may be named."""
    found = imported_attribute(path) if isinstance(path, str) else None
    if not isinstance(found, type) or f"{found.__module__}:{found.__qualname__}" != path:
        return None
    for base, packages in _KINDS_OF_CLASSES:
        if issubclass(found, base) and any(f"{found.__module__}.".startswith(f"{package}.") for package in packages):
            return found
    return None
