"""The errors of plugins."""


class PluginError(Exception):
    """The base class of all errors of plugins."""


class UnknownPartError(PluginError, ValueError):
    """The error for a name that no part has, or no longer has."""


class PluginConflictError(PluginError, ValueError):
    """The error for a name that several plugins offer."""


class PluginContractError(PluginError):
    """The error for a plugin that breaks :mod:`sb3_mbrl.hookspecs` or :mod:`sb3_mbrl.contracts`."""

    signature: tuple[str, str] | None = None
    """The kind of fault and its place in the plugin's code, the same in every check that meets the same mistake"""


class PluginVersionError(PluginError):
    """The error for a part that was written for another version of the contract."""


class BrokenPluginError(PluginError):
    """The error for asking for a plugin that could not be loaded. The original error is its ``__cause__``."""


class PartArgumentError(PluginError, TypeError):
    """The error for keyword arguments that a part does not take, or for one that it needs and was not given."""


class PluginWarning(UserWarning):
    """The warning that a plugin was left out."""


def error_line(error: BaseException) -> str:
    """Put an error into one line: its type and the first line of its message."""
    message = str(error).strip().split("\n", 1)[0].rstrip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
