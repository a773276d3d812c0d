"""Just-in-time compilation if numba is installed (``pip install "sb3-mbrl[jit]"``), else plain Python."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from numba import njit as _compile
except ImportError:
    COMPILED = False
else:
    COMPILED = True


def jit(function: Function) -> Function:
    """Compile a function of numbers, arrays and named tuples of arrays at its first call."""
    return cast(Function, _compile(function)) if COMPILED else function
