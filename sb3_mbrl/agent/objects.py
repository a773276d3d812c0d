"""The base class of the objects that an agent has, and the conversion of their states to JSON values."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

_ARRAY, _TENSOR, _TUPLE = "__array__", "__tensor__", "__tuple__"


class AgentObject:
    """
    A part of an agent that does one job and keeps its own counters, such as the trainer of its world model.

    Its constructor and methods are given everything that they use, so that it never reads the agent. Its counters and
    decisions are saved with the agent (:meth:`state_dict`); hyperparameters stay attributes of the agent, as in SB3.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return counters and decisions as plain values (:func:`to_plain`)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""


def to_plain(value: Any, where: str = "state") -> Any:
    """
    Turn nested Python values, arrays and tensors into JSON values. Arrays and tensors become their bytes in base 64.

    :param value: dictionaries with text keys, lists, tuples, numbers, text, ``None``, NumPy arrays and tensors
    :param where: the name of the value, for the error
    :raises TypeError: for anything else; the message names the place
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and type(value) in (bool, int, float, str)):
        return value
    if isinstance(value, th.Tensor):
        array = value.detach().cpu().contiguous()
        # bfloat16 has no NumPy type: all tensors travel as bytes.
        content = array.reshape(-1).view(th.uint8).numpy().tobytes() if array.numel() else b""
        return {_TENSOR: str(array.dtype).removeprefix("torch."), "shape": list(array.shape), "data": _encode(content)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        return {_ARRAY: value.dtype.str, "shape": list(value.shape), "data": _encode(np.ascontiguousarray(value).tobytes())}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: keys must be text, so that the state can be saved as JSON")
        return {key: to_plain(child, f"{where}[{key!r}]") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        children = [to_plain(child, f"{where}[{index}]") for index, child in enumerate(value)]
        return {_TUPLE: children} if isinstance(value, tuple) else children
    raise TypeError(
        f"{where} is {type(value).__name__}, which cannot be saved: give JSON values, NumPy arrays and tensors (in "
        "dictionaries, lists and tuples)"
    )


def from_plain(value: Any) -> Any:
    """
    Undo :func:`to_plain`; tensors are on the CPU.

    :raises ValueError: for a value that :func:`to_plain` does not write
    """
    try:
        return _from_plain(value)
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"it holds a value that sb3-mbrl does not write: {error}") from error


def unlike(saved: Any, fresh: Any, where: str) -> str | None:
    """
    Explain where a saved state is not of the kind of a new object's; ``None`` where it is.

    :param saved: the saved state
    :param fresh: the state of a new object; ``None`` in it stands for anything
    :param where: the name of the state
    """
    if fresh is None or (saved is None and not isinstance(fresh, (bool, int, float, str, dict))):
        return None
    if isinstance(fresh, Mapping):
        if not isinstance(saved, Mapping):
            return f"{where} is {_described(saved)}, not a dictionary"
        reasons = (
            unlike(saved[key], value, f"{where}[{key!r}]") if key in saved else f"{where} lacks {key!r}"
            for key, value in fresh.items()
        )
        return next((reason for reason in reasons if reason), None)
    if isinstance(fresh, (int, float)) and not isinstance(fresh, bool):
        number = isinstance(saved, (int, float)) and not isinstance(saved, bool) and math.isfinite(saved)
        return None if number else f"{where} is {_described(saved)}, not a number"
    if not isinstance(saved, type(fresh)):
        return f"{where} is {_described(saved)}, not of the type {type(fresh).__name__}"
    if isinstance(fresh, tuple):
        if len(saved) != len(fresh):
            return f"{where} has {len(saved)} parts, not {len(fresh)}"
        reasons = (unlike(one, other, f"{where}[{i}]") for i, (one, other) in enumerate(zip(saved, fresh, strict=True)))
        return next((reason for reason in reasons if reason), None)
    if isinstance(fresh, (np.ndarray, th.Tensor)) and saved.dtype != fresh.dtype:
        return f"{where} holds {saved.dtype}, not {fresh.dtype}"
    return None


def _described(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(child) for child in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        dtype = getattr(th, value[_TENSOR])
        if not isinstance(dtype, th.dtype):
            raise TypeError(f"{value[_TENSOR]!r} is no type of tensors")
        content = base64.b64decode(value["data"])
        flat = th.frombuffer(bytearray(content), dtype=dtype) if content else th.empty(0, dtype=dtype)
        return flat.reshape(value["shape"])
    if _ARRAY in value:
        return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value[_ARRAY])).reshape(value["shape"]).copy()
    if _TUPLE in value:
        return tuple(_from_plain(child) for child in value[_TUPLE])
    return {key: _from_plain(child) for key, child in value.items()}


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
