"""What can go wrong with plugins, and the words for it."""


class PluginError(Exception):
    """Base class of everything that can go wrong with plugins."""


class UnknownPartError(PluginError, ValueError):
    """Nothing of this name, or not any more."""


class PluginConflictError(PluginError, ValueError):
    """A name is offered more than once."""


class PluginContractError(PluginError):
    """A plugin does not do what :mod:`sb3_mbrl.hookspecs` and :mod:`sb3_mbrl.contracts` ask of it."""


class PluginVersionError(PluginError):
    """A part was written for another version of the contract."""


class BrokenPluginError(PluginError):
    """A plugin that could not be loaded was asked for. The original error is its ``__cause__``."""


class PartArgumentError(PluginError, TypeError):
    """A part was given keyword arguments that it does not take, or lacks one that it needs."""


class PluginWarning(UserWarning):
    """A plugin was left out."""


def error_line(error: BaseException) -> str:
    """An error in one line: its type and the first line of its message."""
    first = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
