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


def jit_stored(function: Function) -> Function:
    """
    Compile as :func:`jit`, and store the result on disk, for functions that take seconds to compile.

    It is stored until the function's own file changes: a change in another file, such as that of a function that it calls,
    goes unnoticed. Where no folder can be written, nothing is stored.
    """
    if not COMPILED:
        return function
    try:
        return cast(Function, _compile(cache=True)(function))
    except RuntimeError:  # "no locator available": neither the folder of the file nor the user's own can be written
        return jit(function)
