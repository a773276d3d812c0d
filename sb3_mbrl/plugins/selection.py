"""Choosing a part: the choice itself, from which the part is built, and the errors where there is none."""

import importlib
import inspect
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces

from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.contracts import CONTRACT_VERSION, EnvFunctionsSpec, PartSpec
from sb3_mbrl.plugins.errors import (
    BrokenPluginError,
    PartArgumentError,
    PluginConflictError,
    PluginContractError,
    PluginVersionError,
    UnknownPartError,
    error_line,
)
from sb3_mbrl.plugins.kinds import KINDS, Layer, Plugin, Record
from sb3_mbrl.plugins.loader import version_problem


def import_target(target: str, wanted_for: str) -> Any:
    """
    Import ``"package.module:attribute"``.

    :param target: the module and the attribute
    :param wanted_for: the part that needs it, for the error message
    :raises UnknownPartError: when there is no such module or attribute
    :raises BrokenPluginError: when the module cannot be imported
    """
    module_name, _, path = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UnknownPartError(f"{wanted_for}: there is no module {error.name!r}") from error
        raise BrokenPluginError(f"{wanted_for}: importing {module_name} failed: {error_line(error)}") from error
    except Exception as error:
        raise BrokenPluginError(f"{wanted_for}: importing {module_name} failed: {error_line(error)}") from error
    try:
        return operator.attrgetter(path)(module)
    except AttributeError as error:
        raise UnknownPartError(
            f"{wanted_for}: module {module_name!r} has no {path!r}.{did_you_mean(path, vars(module))}"
        ) from error


def imported_attribute(path: str) -> Any:
    """
    Look up ``"module:attribute"`` among the modules that are imported already; ``None`` where it is not there.

    Nothing is imported or run: not a module's ``__getattr__`` either.
    """
    module, _, names = path.partition(":")
    found: Any = sys.modules.get(module)
    for name in names.split("."):
        found = inspect.getattr_static(found, name, None)
    return found


def path_of(factory: Callable[..., Any]) -> str:
    """Return ``"module:qualified.name"`` of a class or function; a ``<`` in it means that it cannot be imported again."""
    return f"{getattr(factory, '__module__', '<unknown>')}:{getattr(factory, '__qualname__', '<unnamed>')}"


@dataclass(frozen=True)
class Selection:
    """
    A chosen part that is not built yet.

    :param kind: ``"world_model"``, ``"planner"``, ...
    :param target: the class or function, or ``"module:attribute"``
    :param reference: plain strings for the checkpoint: ``how`` it was chosen (``name``, ``import``, ``class``, ``factory`` or
        ``instance``), ``name`` as given by the user, ``factory`` as ``module:qualname``, ``distribution`` and ``version``
        (empty where not known)
    :param record: the plugin's record of a registered part, else ``None``
    :param instance: the part itself, if the user gave an instance
    """

    kind: str
    target: Callable[..., Any] | str
    reference: Mapping[str, str]
    record: Record | None = None
    instance: Any = None

    def __str__(self) -> str:
        if self.record is not None:
            return str(self.record)
        return f"{KINDS[self.kind].label} {self.reference['name']!r}"

    @property
    def spec(self) -> PartSpec | None:
        """The plugin's description of the part, or ``None`` for an unregistered part"""
        return None if self.record is None else self.record.spec

    @property
    def name(self) -> str:
        """A short name for logs"""
        return self.reference["name"] if self.spec is None else self.spec.name

    @property
    def factory(self) -> Callable[..., Any]:
        """The class or function, imported on first access"""
        if not isinstance(self.target, str):
            return self.target
        try:
            return import_target(self.target, str(self))
        except UnknownPartError as error:
            if self.record is None:
                raise
            raise BrokenPluginError(str(error)) from error  # the plugin's record named it: not the user's mistake

    def takes(self, name: str) -> bool:
        """Tell whether the factory names this argument in its signature; a part that is built already takes none."""
        if self.instance is not None:
            return False
        try:
            return name in inspect.signature(self.factory).parameters
        except ValueError:  # written in C without a signature
            return False

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """
        Call the factory.

        :param args: the positional arguments of the contract
        :param kwargs: the keyword arguments of the contract and of the user
        :raises PartArgumentError: when the factory does not take one of the keyword arguments, or needs another
        :raises PluginContractError: when the factory does not take the arguments of the contract, or returns another type
        """
        kind = KINDS[self.kind]
        if self.instance is not None:
            extra = [key for key in kwargs if key not in kind.given]
            if extra:
                raise PartArgumentError(
                    f"{self} is an instance: {self.kind}_kwargs ({', '.join(extra)}) come too late. Give its class instead."
                )
            return self.instance
        factory = self.factory
        self._check_arguments(factory, args, kwargs)
        try:
            part = factory(*args, **kwargs)
        except Exception as error:
            error.add_note(f"raised by {self}")
            if isinstance(error, TypeError) and inspect.isclass(factory):
                self._explain_keyword(factory, kwargs, error)
            raise
        if not isinstance(part, kind.product):
            raise PluginContractError(
                f"{self}: its factory returned {type(part).__name__}, not {kind.product.__name__}. "
                f"[contract v{CONTRACT_VERSION}]"
            )
        return part

    def _explain_keyword(self, factory: type, kwargs: dict[str, Any], error: TypeError) -> None:
        """Raise a better error for a misspelt keyword that ``**kwargs`` carried to a base class."""
        wrong = next((key for key in kwargs if f"unexpected keyword argument {key!r}" in str(error)), None)
        if wrong is None:
            return
        signatures = (inspect.signature(vars(base)["__init__"]) for base in factory.__mro__ if "__init__" in vars(base))
        parameters = [parameter for signature in signatures for parameter in signature.parameters.values()]
        names = [
            parameter.name
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and not parameter.name.startswith("_")
        ]
        accepted = [name for name in dict.fromkeys(names) if name not in KINDS[self.kind].given]
        raise PartArgumentError(
            f"{self} does not take {wrong!r}.{did_you_mean(wrong, accepted)}\n"
            f"  {self.kind}_kwargs: {', '.join(accepted) or 'none'}"
        ) from error

    def _check_arguments(self, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check arguments before the call: a TypeError from inside the factory must not be taken for a wrong argument."""
        try:
            signature = inspect.signature(factory)
        except ValueError:  # written in C without a signature
            return
        kind = KINDS[self.kind]
        parameters = signature.parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        names = [
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        for key in kwargs if not takes_any else ():
            if key in names:
                continue
            if key in kind.given:
                raise PluginContractError(
                    f"{self}: its factory does not take {key!r}, which every {kind.label} is given. "
                    f"[contract v{CONTRACT_VERSION}]"
                )
            accepted = [name for name in names if name not in kind.given and not name.startswith("_")]
            raise PartArgumentError(
                f"{self} does not take {key!r}.{did_you_mean(key, accepted)}\n"
                f"  {self.kind}_kwargs: {', '.join(accepted) or 'none'}"
            )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise PartArgumentError(f"{self}: {error}. Its signature: {signature}") from error


# ------------------------------------------------------------------------------------- choosing, and the errors of choosing


def unknown_part(kind: str, name: str, records: Sequence[Record], plugins: Sequence[Plugin]) -> UnknownPartError:
    """Make the error for an unknown name: it lists the nearest name, all parts on offer, and broken or blocked plugins."""
    available: dict[str, list[str]] = {}
    for record in records:
        available.setdefault(str(record.origin), []).append(record.spec.name)
    _, colon, part = name.rpartition(":")
    hint = did_you_mean(part, [record.spec.name for record in records])
    if "." in name and not colon:
        hint += " A class is imported as 'package.module:Class'."
    lines = [
        f"unknown {KINDS[kind].label} {name!r}.{hint}",
        "  available: " + ("; ".join(f"{', '.join(group)} ({origin})" for origin, group in available.items()) or "none"),
    ]
    for plugin in plugins:
        if plugin.error is not None:
            lines.append(f"  broken: {plugin}: {error_line(plugin.error)} -> run `sb3-mbrl plugins`")
        elif plugin.status == "blocked":
            lines.append(f"  blocked: {plugin} by {plugin.blocked_by}")
    return UnknownPartError("\n".join(lines))


def reference_to(how: str, name: str, factory: str, distribution: str = "", version: str = "") -> dict[str, str]:
    """Make the reference that a checkpoint stores for a choice (see :class:`Selection`)."""
    return {"how": how, "name": name, "factory": factory, "distribution": distribution, "version": version}


def select(kind: str, record: Record, how: str, name: str) -> Selection:
    """
    Choose a record.

    :raises PluginVersionError: when it was written for another contract version
    """
    if problem := version_problem(record.origin, record.spec):
        raise PluginVersionError(problem)
    factory = record.spec.factory
    path = factory if isinstance(factory, str) else path_of(factory)
    return Selection(kind, factory, reference_to(how, name, path, record.origin.distribution, record.origin.version), record)


def qualified(record: Record, rivals: Sequence[Record]) -> str:
    """Return the shortest name of a record's plugin that distinguishes it from its rivals."""
    origin = record.origin
    if not origin.distribution:
        return origin.plugin
    same = [rival for rival in rivals if rival.origin.distribution == origin.distribution]
    return origin.distribution if len(same) == 1 else f"{origin.distribution}:{origin.plugin}"


def advice(rivals: Sequence[Record], *choices: str) -> str:
    """List the ways for a user to resolve a conflict."""
    installed = [record for record in rivals if record.origin.layer is Layer.INSTALLED]
    if installed:
        choices += (f"block one with SB3_MBRL_BLOCK={qualified(installed[-1], rivals)}",)
    return " or ".join(choices)


def conflict(kind: str, name: str, rivals: Sequence[Record]) -> PluginConflictError:
    """Make the error for a name that several plugins offer."""
    offers = " and ".join(record.origin.title for record in rivals)
    write = f"write {kind}='{qualified(rivals[0], rivals)}:{rivals[0].spec.name}'"
    message = f"{KINDS[kind].label} name {name!r} is offered by {offers}; {advice(rivals, write)}"
    if rivals[0].origin.layer is Layer.BUILT_IN:
        message += " (a record with override=True replaces a built-in part)"
    return PluginConflictError(message)


def refusal(record: Record, observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """
    Ask a part for the reason why it does not take the spaces; ``None`` if it takes them.

    :raises PluginContractError: when its ``supports`` raises, or returns anything but a reason or ``None``
    """
    owner = f"{KINDS[record.spec.kind].label} {record.spec.name!r} of {record.origin.title}"
    try:
        reason = record.spec.supports(observation_space, action_space)
    except Exception as error:
        raise PluginContractError(f"{owner}: its supports() raised {error_line(error)}.") from error
    if reason is not None and not isinstance(reason, str):
        raise PluginContractError(f"{owner}: its supports() returned {reason!r}, not None or a reason in words.")
    return reason


def patterns(record: Record) -> tuple[str, ...]:
    """Return the patterns of Gymnasium ids that a record is for."""
    return record.spec.env_ids if isinstance(record.spec, EnvFunctionsSpec) else ()


def specificity(env_id: str, pattern: str) -> tuple[bool, int]:
    """Rank a glob that fits an id: whether it is the id itself, and its number of fixed characters."""
    return pattern == env_id, len(re.sub(r"\[[^]]*\]|[*?]", "", pattern))
