"""Errors of plug-ins: what a program can catch, and one-line texts."""

import pytest

from sb3_mbrl.plugins import errors
from sb3_mbrl.plugins.errors import (
    BrokenPluginError,
    PartArgumentError,
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginVersionError,
    PluginWarning,
    UnknownPartError,
    error_line,
)


def test_one_class_catches_all_errors_and_python_s_own_kinds_catch_theirs():
    kinds = {
        UnknownPartError: ValueError,
        PluginConflictError: ValueError,
        PartArgumentError: TypeError,
        PluginContractError: Exception,
        PluginVersionError: Exception,
        BrokenPluginError: Exception,
    }
    assert all(issubclass(cls, PluginError) and issubclass(cls, kind) for cls, kind in kinds.items())
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == {*kinds, PluginError, PluginWarning}


def test_a_warning_is_no_error():
    """``-W ignore::UserWarning`` hides it, and no ``except PluginError`` catches it."""
    assert issubclass(PluginWarning, UserWarning)
    assert not issubclass(PluginWarning, PluginError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("too large"), "ValueError: too large"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (ValueError("\n  padded  \nmore"), "ValueError: padded"),
        (KeyError("name"), "KeyError: 'name'"),
        (RuntimeError(), "RuntimeError"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x'"),
    ],
)
def test_an_error_in_one_line(error, line):
    assert error_line(error) == line
