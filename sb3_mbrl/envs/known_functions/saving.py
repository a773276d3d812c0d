"""Known functions as plain values."""

from dataclasses import fields
from typing import Any

from sb3_mbrl.envs.known_functions.common import VectorFunction


def _all(cls: type) -> dict[str, type]:
    found = {}
    for sub in cls.__subclasses__():
        found[sub.__name__] = sub
        found.update(_all(sub))
    return found


def is_plain(function: Any) -> bool:
    return isinstance(function, VectorFunction)


def to_plain(function: Any) -> Any:
    if isinstance(function, VectorFunction):
        return {
            "function": type(function).__name__,
            "fields": {f.name: to_plain(getattr(function, f.name)) for f in fields(function)},
        }
    if isinstance(function, tuple):
        return {"tuple": [to_plain(v) for v in function]}
    return function


def from_plain(value: Any) -> Any:
    if isinstance(value, dict) and "function" in value:
        return _all(VectorFunction)[value["function"]](**{k: from_plain(v) for k, v in value["fields"].items()})
    if isinstance(value, dict) and "tuple" in value:
        return tuple(from_plain(v) for v in value["tuple"])
    return value
