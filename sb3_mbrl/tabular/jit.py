"""Just-in-time compilation where numba is installed (``pip install "sb3-mbrl[jit]"``); plain Python elsewhere."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    import numba
except ImportError:
    numba = None

COMPILED = numba is not None


def jit(function: Function) -> Function:
    """Compile at the first call; arguments are numbers, arrays and named tuples of arrays."""
    return function if numba is None else numba.njit(function)
