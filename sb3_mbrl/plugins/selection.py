"""A chosen part: what is remembered about the choice, and building it."""

import importlib
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.contracts import CONTRACT_VERSION, PartSpec
from sb3_mbrl.plugins.errors import (
    BrokenPluginError,
    PartArgumentError,
    PluginContractError,
    UnknownPartError,
    error_line,
)
from sb3_mbrl.plugins.kinds import KINDS, Record


def import_target(target: str, wanted_for: str) -> Any:
    """
    Import ``"package.module:attribute"``.

    :param target: what to import
    :param wanted_for: who needs it, for the error message
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


def path_of(factory: Callable[..., Any]) -> str:
    """``"module:qualified.name"`` of a class or function; it has a ``<`` where it cannot be imported again."""
    return f"{getattr(factory, '__module__', '<unknown>')}:{getattr(factory, '__qualname__', '<unnamed>')}"


@dataclass(frozen=True)
class Selection:
    """
    A part that was chosen, not built yet.

    :param kind: ``"world_model"``, ``"planner"``, ...
    :param target: the class or function, or ``"module:attribute"``
    :param reference: plain strings for the checkpoint: ``how`` it was chosen (``name``, ``import``, ``class``, ``factory`` or
        ``instance``), ``name`` as given by the user, ``factory`` as ``module:qualname``, ``distribution`` and ``version``
        (empty where not known)
    :param record: the plugin's record, where it is a registered part
    :param instance: the part itself, where the user gave one
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
        """The record's content, or ``None`` for a part that nobody registered."""
        return None if self.record is None else self.record.spec

    @property
    def name(self) -> str:
        """A short name for logs."""
        return self.reference["name"] if self.spec is None else self.spec.name

    @property
    def factory(self) -> Callable[..., Any]:
        """The class or function, imported when it is first asked for."""
        if not isinstance(self.target, str):
            return self.target
        try:
            return import_target(self.target, str(self))
        except UnknownPartError as error:
            if self.record is None:
                raise
            raise BrokenPluginError(str(error)) from error  # the record promised it: not the user's mistake

    def takes(self, name: str) -> bool:
        """Whether the factory has a keyword argument of this name, spelt out; one that is built already takes nothing."""
        if self.instance is not None:
            return False
        try:
            return name in inspect.signature(self.factory).parameters
        except ValueError:  # written in C without a signature
            return False

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """
        Call the factory.

        :param args: what the contract says this kind of part is given
        :param kwargs: likewise, and the user's keyword arguments
        :raises PartArgumentError: when the factory does not take one of the keyword arguments, or needs another
        :raises PluginContractError: when the factory does not take what the contract says, or returns something else
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
        """Better words for a misspelt keyword that ``**kwargs`` had carried to a base class."""
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
        """Done beforehand: a TypeError from inside the factory is its own and must not be taken for this one."""
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
            accepted = [name for name in names if name not in kind.given]
            raise PartArgumentError(
                f"{self} does not take {key!r}.{did_you_mean(key, accepted)}\n"
                f"  {self.kind}_kwargs: {', '.join(accepted) or 'none'}"
            )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise PartArgumentError(f"{self}: {error}. Its signature: {signature}") from error
