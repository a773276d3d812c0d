"""Numbers that users give, held against what they may be."""

import math
from numbers import Real
from typing import Any


def whole(name: str, value: Any, low: int) -> int:
    """A whole number from ``low`` on; whole floats pass, since a file of settings may say 1e3."""
    if not _is_number(value) or not float(value).is_integer() or value < low:
        raise ValueError(f"{name}={value!r}: give a whole number from {low} on")
    return int(value)


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite number from ``low`` to ``high``."""
    if not _is_number(value) or not low <= value <= high or not math.isfinite(value) or (open_low and value == low):
        until = f" up to {high:g}" if high < math.inf else ""
        raise ValueError(f"{name}={value!r}: give a number {'above' if open_low else 'from'} {low:g}{until}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
