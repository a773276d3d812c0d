"""Faults of parts, and the messages that their authors read: what is wrong, where, what is required, how to mend it."""

import inspect
import os
import re
from abc import ABC
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

from sb3_mbrl.contracts import CONTRACT_VERSION
from sb3_mbrl.plugins.errors import PluginContractError

_OWN = "sb3_mbrl"


class Fault(NamedTuple):
    """A fault of a part."""

    what: str
    """A clause that continues the part's name: ``".step returned ..."``"""
    remedy: str
    """How to mend it, as a request"""

    def in_case(self, words: str) -> "Fault":
        """Return the same fault with the case in which it was seen."""
        return self._replace(what=f"{self.what} ({words})")


def contract_error(
    name: str, part: Any, fault: Fault, *, check: str, required: str, error: BaseException | None = None
) -> PluginContractError:
    """
    Put a fault into words.

    :param name: the name of the part
    :param part: the part, its class or its factory
    :param fault: what is wrong, and how to mend it
    :param check: the name of the check that found it
    :param required: the requirement of the contract that is not met
    :param error: the exception behind the fault, if there is one
    :return: the error to raise; its ``signature`` is the same for the same mistake, whichever check has met it
    """
    method = re.match(r"\.(\w+)", fault.what)
    where = locate(part, method[1] if method else None, error)
    lines = [
        f"{name}{fault.what.rstrip('. ')}.".replace("\n", " "),
        f"  where: {where or 'its source is not in a file'}",
        f"  required: {required.rstrip('.')}.",
        f"  remedy: {fault.remedy.rstrip('.')}.",
        f"  [contract v{CONTRACT_VERSION}, {check}]",
    ]
    result = PluginContractError("\n".join(lines))
    kind = re.sub(r"\d[\d.e+-]*", "#", fault.what) if error is None else f"raised {type(error).__name__}"
    result.signature = (kind, where or "")
    return result


# ---- where


def locate(part: Any, method: str | None = None, error: BaseException | None = None) -> str | None:
    """
    Find the line of a part's own code that is to blame: where it raised, else its method or attribute, else its class.

    :param part: the part, its class or its factory
    :param method: the name of a method or attribute
    :param error: an exception that came from the part
    :return: ``"file.py:12 (Class.method)"``; ``None`` if there is no source
    """
    owner = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
    if error is not None and (line := _raising_line(owner, error)):
        return line
    if not isinstance(owner, type):
        code = getattr(inspect.unwrap(owner), "__code__", None)
        return _line(code.co_filename, code.co_firstlineno, code.co_qualname) if isinstance(code, CodeType) else None
    return (_member_line(owner, method) if method else None) or _class_line(owner)


def _raising_line(owner: Callable[..., Any], error: BaseException) -> str | None:
    """Find the innermost frame in the modules of the part; library code below it, such as torch's, is not to blame."""
    top = owner.__module__.partition(".")[0]
    members = [member for cls in _own_classes(owner) for member in vars(cls).values()]
    modules = {owner.__module__, *(member.__module__ for member in members if inspect.isfunction(member))}
    line, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        module = frame.f_globals.get("__name__", "")
        if module in modules or (top != _OWN and module.partition(".")[0] == top):
            line = _line(frame.f_code.co_filename, trace.tb_lineno, frame.f_code.co_qualname)
        trace = trace.tb_next
    return line


def _own_classes(owner: Any) -> Iterator[type]:
    """Iterate over the author's classes: those of the part that lie outside this library, unless the part is the library's."""
    foreign = ("torch", "builtins", *(() if owner.__module__.partition(".")[0] == _OWN else (_OWN,)))
    for cls in getattr(owner, "__mro__", ()):
        if cls.__module__.partition(".")[0] not in foreign and cls.__module__ != f"{_OWN}.contracts" and cls is not ABC:
            yield cls


def _member_line(owner: type, name: str) -> str | None:
    """Find a method, or a line that sets an attribute."""
    for cls in _own_classes(owner):
        member = vars(cls).get(name)
        member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
        if isinstance(code, CodeType):
            return _line(code.co_filename, code.co_firstlineno, f"{cls.__qualname__}.{name}")
        sets = re.compile(rf"^\s*(self\.)?{re.escape(name)}\b\s*(:[^=]*)?=[^=]")
        for number, text in _source(cls):
            if sets.match(text):
                return _line(inspect.getsourcefile(cls) or "", number, f"{cls.__qualname__}.{name}")
    return None


def _class_line(owner: type) -> str | None:
    """Find the first line of the class; of its first method, where it was made without a class statement."""
    for cls in _own_classes(owner):
        for number, _ in _source(cls):
            return _line(inspect.getsourcefile(cls) or "", number, cls.__qualname__)
        for member in vars(cls).values():
            if inspect.isfunction(member):
                return _line(member.__code__.co_filename, member.__code__.co_firstlineno, cls.__qualname__)
    return None


def _source(cls: type) -> list[tuple[int, str]]:
    """Return the lines of a class with their numbers; none for a class that was made without source."""
    try:
        lines, first = inspect.getsourcelines(cls)
    except (OSError, TypeError):
        return []
    return list(enumerate(lines, first))


def _line(file: str, number: int, name: str) -> str:
    """Write a line of source; the path is relative where that is shorter."""
    try:
        near = os.path.relpath(file)
    except ValueError:  # on another drive
        near = file
    return f"{near if not near.startswith('..') else file}:{number} ({name})"
