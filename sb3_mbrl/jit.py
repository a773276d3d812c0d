"""Just-in-time compilation if numba is installed (``pip install numba``), else plain Python."""

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
    goes unnoticed. Where no folder can be written, nothing is stored. A division by zero is no error, as in numpy, since the
    checks make small functions slower by half. The function may not make arrays, but only views of those it is given: without
    reference counts, functions that take many arrays are twice as fast.
    """
    if not COMPILED:
        return function
    settings: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
    try:
        return cast(Function, _compile(cache=True, **settings)(function))
    except RuntimeError:  # "no locator available": neither the folder of the file nor the user's own can be written
        return cast(Function, _compile(**settings)(function))


def jit_inline(function: Function) -> Function:
    """
    Compile a small function into those that call it: otherwise every call passes all arrays of its named tuples one by one.
    """
    return cast(Function, _compile(inline="always", error_model="numpy")(function)) if COMPILED else function
