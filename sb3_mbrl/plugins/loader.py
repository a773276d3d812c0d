"""Loading plugins one by one, so that a broken one harms no other.

pluggy's own entry-point loader stops at the first plugin that cannot be imported, and silently ignores the second of two
plugins with equal names. Here every plugin is imported, checked and asked for its records on its own, before it may join a
plugin manager.
"""

import importlib
import inspect
import logging
import os
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from sb3_mbrl import hookspecs
from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.contracts import PartSpec
from sb3_mbrl.plugins.errors import (
    BrokenPluginError,
    PluginContractError,
    PluginError,
    PluginWarning,
    error_line,
)
from sb3_mbrl.plugins.kinds import KINDS, Kind, Layer, Origin, Plugin, Record
from sb3_mbrl.specs import CHANGED_IN_2, CONTRACT_VERSION
from sb3_mbrl.version import __version__

logger = logging.getLogger("sb3_mbrl.plugins")

GROUP = hookspecs.PROJECT_NAME
BUILTIN = "sb3_mbrl.builtin"


def new_manager() -> pluggy.PluginManager:
    """Make a plugin manager that knows the hooks and has no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    return manager


def trace(manager: pluggy.PluginManager) -> None:
    """Log every hook call; to the terminal where logging is not configured, so that a trace is always seen."""
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())

    def log_call(name: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        plain = {
            key: value if isinstance(value, (int, float, str)) else type(value).__name__ for key, value in arguments.items()
        }
        call = ", ".join(f"{key}={value}" for key, value in plain.items())
        logger.info("%s(%s) -> %s", name, call, ", ".join(hook.plugin_name for hook in implementations) or "nobody")

    manager.add_hookcall_monitoring(log_call, lambda outcome, name, implementations, arguments: None)


HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(hookspecs).items()
    if name.startswith(f"{hookspecs.PROJECT_NAME}_") and inspect.isfunction(function)
}
"""The names of all hooks, each with the names of its arguments"""


# --------------------------------------------------------------------------------------------------------------- one plugin


def load(origin: Origin, fetch: Callable[[], Any]) -> Plugin:
    """
    Load one plugin.

    :param origin: the plugin's name and distribution
    :param fetch: a function that imports the plugin
    :return: the plugin; if importing or checking it fails, a broken one that carries the error
    """
    try:
        implementation = fetch()
        if inspect.isclass(implementation):
            implementation = implementation()
        hooks = _checked_hooks(implementation)
        records = tuple(_records(origin, hooks))
    except Exception as error:  # a plugin's code may raise anything: kept, and raised when the plugin is asked for
        return Plugin(origin, "broken", error=error)
    return Plugin(origin, "ok", implementation, tuple(hooks), records)


def _checked_hooks(implementation: Any) -> dict[str, list[pluggy.HookImpl]]:
    """Return the hooks that a plugin implements, after checking their names and arguments."""
    # A manager without specifications accepts any hook, so that the messages below are ours and not pluggy's.
    bare = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    bare.register(implementation)
    hooks: dict[str, list[pluggy.HookImpl]] = {}
    for caller in bare.get_hookcallers(implementation) or ():
        implementations = caller.get_hookimpls()
        if caller.name in HOOKS:
            for hook in implementations:
                _check_arguments(caller.name, hook)
            hooks[caller.name] = implementations
        elif not all(hook.optionalhook for hook in implementations):
            raise PluginContractError(f"there is no hook {caller.name!r}.{did_you_mean(caller.name, HOOKS)}")
    if not hooks:
        raise PluginContractError("it implements no hook; mark its functions with @sb3_mbrl.hookimpl")
    new_manager().register(implementation)  # pluggy's own rules, e.g. that a wrapper yields
    return hooks


def _check_arguments(name: str, hook: pluggy.HookImpl) -> None:
    unknown = [argument for argument in hook.argnames if argument not in HOOKS[name]]
    if unknown:
        known = ", ".join(HOOKS[name]) or "none"
        raise PluginContractError(f"{name} has no argument {unknown[0]!r} (its arguments: {known})")


def _records(origin: Origin, hooks: dict[str, list[pluggy.HookImpl]]) -> Iterator[Record]:
    for kind in KINDS.values():
        seen = set()
        for hook in hooks.get(kind.hook, ()):
            if hook.wrapper or hook.hookwrapper:
                raise PluginContractError(f"{kind.hook} must return its own records; it cannot be a wrapper")
            specs = hook.function()
            if not isinstance(specs, (list, tuple)):
                raise PluginContractError(f"{kind.hook} returned {type(specs).__name__}, not a list of {kind.spec.__name__}")
            for spec in specs:
                _check_spec(kind, spec)
                if spec.name in seen:
                    raise PluginContractError(f"{kind.hook} offers {spec.name!r} twice")
                seen.add(spec.name)
                yield Record(origin, spec)


def _check_spec(kind: Kind, spec: Any) -> None:
    if not isinstance(spec, kind.spec):
        raise PluginContractError(f"{kind.hook} returned a list with {type(spec).__name__}, not {kind.spec.__name__}")
    if not spec.name or ":" in spec.name or spec.name == "auto":
        raise PluginContractError(f"{kind.hook} offers {spec.name!r}: a name has no colon, is not empty and not 'auto'")
    if not callable(spec.factory) and not (isinstance(spec.factory, str) and ":" in spec.factory):
        raise PluginContractError(
            f"{kind.hook}: the factory of {spec.name!r} is {spec.factory!r}, not callable or 'module:attribute'"
        )
    rank = getattr(spec, "auto_rank", None)
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool)):
        raise PluginContractError(f"{kind.hook}: the auto_rank of {spec.name!r} is {rank!r}, not a whole number or None")


def version_problem(origin: Origin, spec: PartSpec) -> str | None:
    """Explain why a part of another contract version cannot be used; ``None`` if it is of this version."""
    if spec.contract == CONTRACT_VERSION:
        return None
    newer = spec.contract > CONTRACT_VERSION
    remedy = "a newer sb3-mbrl: pip install --upgrade sb3-mbrl" if newer else f"a newer {origin.distribution or origin.plugin}"
    changes = "" if newer else f"\n{CHANGED_IN_2}"
    return (
        f"{origin.title} was written for contract v{spec.contract}; this sb3-mbrl speaks v{CONTRACT_VERSION}.\n"
        f"  {spec.name!r} needs {remedy}{changes}"
    )


def broken_error(plugin: Plugin) -> BrokenPluginError:
    """Make the error for asking for a broken plugin; raise it ``from plugin.error``."""
    assert plugin.error is not None
    message = f"plugin {plugin.origin.plugin!r} ({plugin.origin}) is broken: {error_line(plugin.error)}"
    if plugin.origin.layer is Layer.INSTALLED:
        message += f"\n  Repair it, or keep it out with SB3_MBRL_BLOCK={plugin.origin.distribution}"
    return BrokenPluginError(message)


# ------------------------------------------------------------------------------------------------------------- all plugins


def load_builtin() -> Plugin:
    """Load the library's own parts; an error in them is raised at once."""
    plugin = load(Origin("builtin", "sb3-mbrl", __version__, Layer.BUILT_IN), lambda: importlib.import_module(BUILTIN))
    if plugin.error is not None:
        raise broken_error(plugin) from plugin.error
    return plugin


def load_given(given: Any) -> Plugin:
    """
    Load a plugin that was given to an agent.

    :param given: a module, a class (called without arguments) or an object
    """
    if isinstance(given, types.ModuleType):
        name = given.__name__
    else:
        name = given.__qualname__ if inspect.isclass(given) else type(given).__qualname__
    plugin = load(Origin(name, layer=Layer.GIVEN), lambda: given)
    if plugin.error is not None:
        raise broken_error(plugin) from plugin.error
    return plugin


def load_entry_point(plugin: Plugin) -> Plugin:
    """Load an installed plugin that was blocked so far."""
    assert plugin.entry_point is not None
    return replace(load(plugin.origin, plugin.entry_point.load), entry_point=plugin.entry_point)


def load_installed() -> list[Plugin]:
    """
    Load the plugins of the entry-point group ``sb3_mbrl``, as far as the environment variables allow.

    :return: all installed plugins, the broken and the blocked ones too, sorted by distribution and name
    """
    allowed, blocked = _names("SB3_MBRL_PLUGINS"), _names("SB3_MBRL_BLOCK") or []
    installed = [Plugin(_origin(point), "blocked", entry_point=point) for point in entry_points(group=GROUP)]
    # importlib.metadata lists distributions in the order of a directory, which differs between machines.
    installed.sort(key=lambda plugin: (plugin.origin.distribution, plugin.origin.plugin))
    for name in allowed or ():
        if not any(plugin.origin.is_called(name) for plugin in installed):
            known = [word for plugin in installed for word in (plugin.origin.plugin, plugin.origin.distribution)]
            complain(f"SB3_MBRL_PLUGINS names {name!r}, which is not installed.{did_you_mean(name, known)}")
    plugins = []
    for plugin in installed:
        if any(plugin.origin.is_called(name) for name in blocked):
            plugin = replace(plugin, blocked_by="SB3_MBRL_BLOCK")
        elif allowed is not None and not any(plugin.origin.is_called(name) for name in allowed):
            plugin = replace(plugin, blocked_by="SB3_MBRL_PLUGINS")
        else:
            plugin = load_entry_point(plugin)
            if plugin.error is not None:
                complain(
                    f"plugin {plugin.origin.plugin!r} ({plugin.origin}) is broken and left out: {error_line(plugin.error)} "
                    "(see `sb3-mbrl plugins`)",
                    plugin.error,
                )
        plugins.append(plugin)
    return plugins


def _origin(point: EntryPoint) -> Origin:
    if point.dist is None:
        return Origin(point.name, "unknown", "unknown")
    return Origin(point.name, point.dist.name or "unknown", point.dist.version or "unknown")


def _names(variable: str) -> list[str] | None:
    value = os.environ.get(variable)
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def complain(message: str, cause: Exception | None = None) -> None:
    """Warn about a plugin in one line, or raise with ``SB3_MBRL_STRICT=1``."""
    if os.environ.get("SB3_MBRL_STRICT") == "1":
        raise (PluginError(message) if cause is None else BrokenPluginError(message)) from cause
    warnings.warn(message, PluginWarning, stacklevel=4)
