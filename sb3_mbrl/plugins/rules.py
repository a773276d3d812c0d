"""The rules of choosing a part, and the words where a choice fails."""

import re
from collections.abc import Sequence

from gymnasium import spaces

from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.contracts import EnvFunctionsSpec
from sb3_mbrl.plugins.errors import (
    PluginConflictError,
    PluginContractError,
    PluginVersionError,
    UnknownPartError,
    error_line,
)
from sb3_mbrl.plugins.kinds import KINDS, Layer, Plugin, Record
from sb3_mbrl.plugins.loader import version_problem
from sb3_mbrl.plugins.selection import Selection, path_of


def unknown_part(kind: str, name: str, records: Sequence[Record], plugins: Sequence[Plugin]) -> UnknownPartError:
    """The error for a name that nobody offers, with the nearest one, all that is on offer, and what is out of order."""
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
    """What a checkpoint stores about a choice (see :class:`Selection`)."""
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
    """The shortest name of a record's plugin that tells it from its rivals."""
    origin = record.origin
    if not origin.distribution:
        return origin.plugin
    same = [rival for rival in rivals if rival.origin.distribution == origin.distribution]
    return origin.distribution if len(same) == 1 else f"{origin.distribution}:{origin.plugin}"


def advice(rivals: Sequence[Record], *choices: str) -> str:
    """What a user can do about a conflict."""
    installed = [record for record in rivals if record.origin.layer is Layer.INSTALLED]
    if installed:
        choices += (f"block one with SB3_MBRL_BLOCK={qualified(installed[-1], rivals)}",)
    return " or ".join(choices)


def conflict(kind: str, name: str, rivals: Sequence[Record]) -> PluginConflictError:
    """The error for a name that several plugins offer."""
    offers = " and ".join(record.origin.title for record in rivals)
    write = f"write {kind}='{qualified(rivals[0], rivals)}:{rivals[0].spec.name}'"
    message = f"{KINDS[kind].label} name {name!r} is offered by {offers}; {advice(rivals, write)}"
    if rivals[0].origin.layer is Layer.BUILT_IN:
        message += " (a record with override=True replaces a built-in part)"
    return PluginConflictError(message)


def refusal(record: Record, observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    """
    Why a part does not take the spaces, or ``None`` where it does.

    :raises PluginContractError: when it does not say so as it should
    """
    whose = f"{KINDS[record.spec.kind].label} {record.spec.name!r} of {record.origin.title}"
    try:
        reason = record.spec.supports(observation_space, action_space)
    except Exception as error:
        raise PluginContractError(f"{whose}: its supports() raised {error_line(error)}.") from error
    if reason is not None and not isinstance(reason, str):
        raise PluginContractError(f"{whose}: its supports() returned {reason!r}, not None or a reason in words.")
    return reason


def patterns(record: Record) -> tuple[str, ...]:
    """The Gymnasium ids that a record is for."""
    return record.spec.env_ids if isinstance(record.spec, EnvFunctionsSpec) else ()


def specificity(env_id: str, pattern: str) -> tuple[bool, int]:
    """How closely a glob fits: whether it is the id itself, and its number of fixed characters."""
    return pattern == env_id, len(re.sub(r"\[[^]]*\]|[*?]", "", pattern))
