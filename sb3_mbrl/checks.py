"""Checks of numbers and names from users."""

import difflib
import inspect
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any


def whole(name: str, value: Any, low: int) -> int:
    """Check a whole number of at least ``low``, and return it; whole floats pass, since settings files may have 1e3."""
    if not _is_number(value) or not float(value).is_integer() or value < low:
        raise ValueError(f"{name}={value!r}: give a whole number from {low} on")
    return int(value)


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """Check a finite number from ``low`` to ``high``, and return it; ``open_low``: ``low`` itself is not allowed."""
    if not _is_number(value) or not low <= value <= high or not math.isfinite(value) or (open_low and value == low):
        limit = f" up to {high:g}" if high < math.inf else ""
        raise ValueError(f"{name}={value!r}: give a number {'above' if open_low else 'from'} {low:g}{limit}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """
    Suggest the most similar of the names: ``" Did you mean 'x'?"``, or an empty string if none is similar. Names that begin
    with an underscore are private, and not suggested.
    """
    close = difflib.get_close_matches(name, [one for one in names if not one.startswith("_")], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


_LIBRARIES = ("sb3_mbrl", "stable_baselines3", "sb3_contrib")


def user_stacklevel() -> int:
    """Count the frames from the caller to the first outside the libraries, for ``warnings.warn(..., stacklevel=...)``."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return max(level, 1)
