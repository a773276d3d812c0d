"""Known functions as JSON values, so that a saved agent does not depend on where their classes are.

A function is saved as the name that its class has registered (:attr:`VectorFunction.saved_as`) and its fields::

    {"function": "TerminationReward", "fields": {"running": 1.0, "terminal": 0.0, "termination": {"function": ...}}}

Tuples become lists, and lists tuples again; a field that is itself a function is nested. Infinities and NaN stay numbers, as
Python's ``json`` writes and reads them.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from sb3_mbrl.envs.known_functions.common import REGISTERED, VectorFunction
from sb3_mbrl.version import __version__


def is_plain(function: Any) -> bool:
    """
    Whether :func:`to_plain` takes a function: one of the library's, or of a class that has registered a name for itself.

    :param function: a reward or termination function, or ``None``
    """
    try:
        to_plain(function)
    except TypeError:
        return False
    return True


def to_plain(function: VectorFunction) -> dict[str, Any]:
    """
    Describe a function by JSON values.

    :param function: an instance of a registered class
    :return: ``{"function": name, "fields": {...}}``
    :raises TypeError: for any other function, such as one that a user wrote, or a field that JSON has no value for
    """
    cls = type(function)
    name = cls.__dict__.get("saved_as")  # not inherited: a subclass computes something else
    if not isinstance(function, VectorFunction) or name is None:
        raise TypeError(
            f"{function!r} cannot be saved as JSON values: it is not of a class that is registered for that "
            "(a frozen dataclass derived from VectorFunction, with saved_as='a unique name')"
        )
    if "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(f"{cls.__name__} is registered as {name!r}, but it is not a dataclass: its fields are not known")
    return {
        "function": name,
        "fields": {field.name: _to_plain(function, field.name, getattr(function, field.name)) for field in fields(cls)},
    }


def from_plain(value: Mapping[str, Any]) -> VectorFunction:
    """
    Make the function that :func:`to_plain` has described.

    :param value: ``{"function": name, "fields": {...}}``
    :raises ValueError: for a name that is not registered, or fields that its class does not have
    """
    if not _is_function(value):
        raise ValueError(f"a known function is saved as {{'function': name, 'fields': {{...}}}}, not as {value!r}")
    name, saved = value["function"], {key: _from_plain(field) for key, field in value["fields"].items()}
    if name not in REGISTERED:
        raise ValueError(
            f"the known function {name!r} was saved, but neither sb3-mbrl {__version__} nor a plug-in imported so far has it. "
            "Install (or import) what the agent was saved with, or give reward_fn and termination_fn yourself."
        )
    try:
        return REGISTERED[name](**saved)
    except TypeError as error:
        raise ValueError(
            f"the known function {name!r} was saved with the fields {', '.join(saved) or '(none)'}, and sb3-mbrl "
            f"{__version__} cannot make it from these ({error}). Install the version that the agent was saved with, or give "
            "reward_fn and termination_fn yourself."
        ) from error


def _is_function(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"function", "fields"}
        and isinstance(value["function"], str)
        and isinstance(value["fields"], Mapping)
    )


def _to_plain(owner: VectorFunction, field: str, value: Any) -> Any:
    if isinstance(value, VectorFunction):
        return to_plain(value)
    if isinstance(value, (tuple, list)):
        return [_to_plain(owner, field, entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(owner).__name__}.{field} cannot be saved as JSON values: it is {value!r}")


def _from_plain(value: Any) -> Any:
    if _is_function(value):
        return from_plain(value)
    return tuple(_from_plain(entry) for entry in value) if isinstance(value, (tuple, list)) else value
