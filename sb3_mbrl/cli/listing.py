"""``sb3-mbrl plugins`` and ``sb3-mbrl check``."""

import argparse
import functools
import traceback
import warnings
from typing import Any
from unittest import SkipTest

from sb3_mbrl.cli.values import UserError, check_arguments, load_plugins, make_env, parse_pairs
from sb3_mbrl.plugins import PluginContractError, PluginWarning, Registry, ReportRow, Selection, UnknownPartError
from sb3_mbrl.plugins.kinds import KINDS

# ------------------------------------------------------------------------------------------------------------------ plugins


def list_plugins(args: argparse.Namespace) -> int:
    """Print a table of all parts."""
    with warnings.catch_warnings():
        # The table says the same, next to the plugin's name.
        warnings.simplefilter("ignore", PluginWarning)
        _, registry = load_plugins(args.plugin)
    rows = registry.report()
    order = [*KINDS, "plugin"]
    rows.sort(key=lambda row: order.index(row.kind))  # stable: built-in parts stay first
    cells = [("name", "kind", "from", "status", "summary"), *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    notes = ["", *(row.error for row in rows)]
    for number, (row, note) in enumerate(zip(cells, notes, strict=True)):
        fixed = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print(f"{fixed}  {row[4]}".rstrip())
        if note:
            print(f"{'':{widths[0]}}  {note}")
        if number == 0:
            print("-" * (sum(widths) + 8 + len("summary")))
    if args.verbose:
        _print_plugins(registry)
    return 0


def _cells(row: ReportRow) -> tuple[str, str, str, str, str]:
    kind = KINDS[row.kind].label if row.kind in KINDS else row.kind
    origin = f"{row.distribution} {row.version}".strip() or "--plugin"
    return row.name, kind, origin, row.status, row.summary


def _print_plugins(registry: Registry) -> None:
    for plugin in registry.plugins:
        print(f"\n{plugin}: {plugin.status}")
        for hook in plugin.hooks:
            print(f"  {hook}")
        if plugin.error is not None:
            print("".join(traceback.format_exception(plugin.error)).rstrip())


# -------------------------------------------------------------------------------------------------------------------- check


def check(args: argparse.Namespace) -> int:
    """Run the kit on one part and print what came of every check."""
    from sb3_mbrl.testing import imagination_checks, planner_checks, world_model_checks
    from sb3_mbrl.testing.kit import Subject, Violation

    _, registry = load_plugins(args.plugin)
    kind, selection = _find(registry, args.name, args.kind)
    part = _part(kind, selection, args)
    if kind == "world_model" and args.env is None:
        try:
            Subject.of(part, kind).home()
        except Violation as error:
            raise UserError(f"{selection}{error}") from error
    checks = {"world_model": world_model_checks, "planner": planner_checks, "imagination": imagination_checks}[kind]()
    print(f"{selection}: {len(checks)} checks")
    width = max(len(one.__name__) for one in checks)
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    for one in checks:
        result, reason = "ok", ""
        try:
            one(part)
        except SkipTest as skip:
            result, reason = "skipped", str(skip)
        except PluginContractError as error:
            result, reason = "FAILED", str(error)
        counts[result] += 1
        print(f"{result:7}  {one.__name__:{width}}  {reason}".rstrip(), flush=True)
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    return 1 if counts["FAILED"] else 0


def _find(registry: Registry, name: str, kind: str | None) -> tuple[str, Selection]:
    """The part that is meant, in whatever kind it is offered."""
    from sb3_mbrl.testing.kit import kind_of

    kinds = ("world_model", "planner", "imagination") if kind is None else (kind,)
    found: dict[str, Selection] = {}
    problem: UnknownPartError | None = None
    for candidate in kinds:
        try:
            found[candidate] = registry.resolve(candidate, name)
        except UnknownPartError as error:
            problem = problem or error
    if not found:
        if any(name == spec.name for other in ("algorithm", "env_functions") for spec in registry.specs(other)):
            raise UserError(f"{name!r} is no world model, planner or imagination: the kit has no checks for it")
        assert problem is not None
        raise problem
    if len(found) > 1:
        # package.module:Class resolves for every kind; the class itself says what it is.
        selection = next(iter(found.values()))
        meant = kind_of(selection.factory, "")
        if selection.spec is not None or not meant:
            raise UserError(f"{name!r} may be a {', '.join(found)}: say which with --kind")
        return meant, found[meant]
    return next(iter(found.items()))


def _part(kind: str, selection: Selection, args: argparse.Namespace) -> Any:
    """What the kit is given: the plugin's record or class, or a part built for one environment."""
    from sb3_mbrl.testing.kit import Subject

    kwargs = check_arguments("--kwargs", parse_pairs("--kwargs", args.kwargs), selection.factory)
    if args.env is None:
        if args.env_kwargs:
            raise UserError("--env-kwargs needs --env")
        if not kwargs:
            return Subject.of(selection.spec or selection.factory, kind)
        return Subject(selection.name, kind, functools.partial(selection.factory, **kwargs), spec=selection.spec)
    if kind == "imagination":
        raise UserError("--env: an imagination is not made for an environment; leave it out")
    env = make_env(args.env, parse_pairs("--env-kwargs", args.env_kwargs))
    try:
        if kind == "planner":
            return selection.build(env.action_space, **kwargs)
        fixed = {"reward_fn": None, "termination_fn": None, "device": "cpu"}
        return selection.build(env.observation_space, env.action_space, **fixed, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{selection} for {args.env}: {error}") from error
