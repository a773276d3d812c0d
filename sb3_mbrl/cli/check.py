"""``sb3-mbrl check``: the conformance kit, run on one part."""

import argparse
import functools
from typing import Any
from unittest import SkipTest

from sb3_mbrl.cli.values import UserError, check_arguments, load_plugins, make_env, parse_pairs
from sb3_mbrl.plugins import PluginContractError, Registry, Selection, UnknownPartError
from sb3_mbrl.plugins.kinds import KINDS

CHECKED_KINDS = ("world_model", "planner", "imagination")
"""The kinds of part that the kit has checks for"""


def check(args: argparse.Namespace) -> int:
    """Run the kit on one part and print the result of every check."""
    from sb3_mbrl.testing import imagination_checks, planner_checks, world_model_checks
    from sb3_mbrl.testing.kit import Subject, Violation

    _, registry = load_plugins(args.plugin)
    kind, selection = _find(registry, args.name, args.kind)
    part = Subject.of(_part(kind, selection, args), kind)
    if kind == "world_model" and args.env is None:
        try:
            part.home()
        except Violation as error:
            raise UserError(f"{selection}{error}. {error.fault.remedy}") from error
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
    """Find the part of a name, and the kind that offers it."""
    from sb3_mbrl.testing.kit import kind_of

    matches: dict[str, Selection] = {}
    problem: UnknownPartError | None = None
    for candidate in CHECKED_KINDS if kind is None else (kind,):
        try:
            matches[candidate] = registry.resolve(candidate, name)
        except UnknownPartError as error:
            problem = problem or error
    if len(matches) > 1:
        # package.module:Class resolves for every kind, so ask the class itself which kind it is.
        selection = next(iter(matches.values()))
        own_kind = kind_of(selection.factory, "")
        if selection.spec is not None or not own_kind:
            raise UserError(f"{name!r} may be a {', '.join(matches)}: say which with --kind")
        return own_kind, matches[own_kind]
    if matches:
        return next(iter(matches.items()))
    others = (other for other in KINDS if other not in CHECKED_KINDS)
    if problem is None or any(name == spec.name for other in others for spec in registry.specs(other)):
        raise UserError(f"{name!r} is no world model, planner or imagination: the kit has no checks for it")
    raise problem


def _part(kind: str, selection: Selection, args: argparse.Namespace) -> Any:
    """Make the kit's subject: the plugin's record, its class, or a part built for one environment."""
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
