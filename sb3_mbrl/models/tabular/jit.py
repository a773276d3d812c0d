"""Just-in-time compilation where numba is installed (``pip install "sb3-mbrl[jit]"``); plain Python elsewhere."""

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
    """Compile at the first call; arguments are numbers, arrays and named tuples of arrays."""
    return cast(Function, _compile(function)) if COMPILED else function
