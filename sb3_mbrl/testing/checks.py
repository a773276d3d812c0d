"""Functions that run the checks: on one part, or as parametrised tests of pytest."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from unittest import SkipTest

from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing.imagination_checks import IMAGINATION_CHECKS
from sb3_mbrl.testing.kit import Check, Subject
from sb3_mbrl.testing.learning_checks import LEARNING_CHECKS
from sb3_mbrl.testing.planner_checks import PLANNER_CHECKS
from sb3_mbrl.testing.world_model_checks import STRUCTURE_CHECKS

_CHECKS: dict[str, tuple[Check, ...]] = {
    "world_model": STRUCTURE_CHECKS + LEARNING_CHECKS,
    "planner": PLANNER_CHECKS,
    "imagination": IMAGINATION_CHECKS,
}


def world_model_checks() -> tuple[Check, ...]:
    """Return all checks of a world model; each takes an instance, a class, a factory or a ``WorldModelSpec``."""
    return _CHECKS["world_model"]


def planner_checks() -> tuple[Check, ...]:
    """Return all checks of a planner; each takes an instance, a class, a factory or a ``PlannerSpec``."""
    return _CHECKS["planner"]


def imagination_checks() -> tuple[Check, ...]:
    """Return all checks of an imagination; each takes an instance, a class, a factory or an ``ImaginationSpec``."""
    return _CHECKS["imagination"]


def check_world_model(part: Any, expected_failed_checks: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Run all checks of a world model.

    :param part: an instance (checked with its own spaces), or a class, factory or ``WorldModelSpec`` (checked with many):
        called as ``factory(observation_space, action_space, reward_fn=..., termination_fn=..., device=...)``
    :param expected_failed_checks: the checks that are known to fail, and the reason of each
    :return: the outcome of every check: ``"passed"``, ``"skipped: ..."`` or ``"expected to fail: ..."``
    :raises PluginContractError: with a list of all failures. Checks that a failed one spoils are not tried, so that one
        mistake gives one message
    """
    return _run(part, "world_model", expected_failed_checks)


def check_planner(part: Any, expected_failed_checks: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Run all checks of a planner; see :func:`check_world_model`.

    :param part: an instance, or a class, factory or ``PlannerSpec``, called as ``factory(action_space)``
    :param expected_failed_checks: the checks that are known to fail, and the reason of each
    """
    return _run(part, "planner", expected_failed_checks)


def check_imagination(part: Any, expected_failed_checks: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Run all checks of an imagination; see :func:`check_world_model`.

    :param part: an instance, or a class, factory or ``ImaginationSpec``, called as ``factory()``
    :param expected_failed_checks: the checks that are known to fail, and the reason of each
    """
    return _run(part, "imagination", expected_failed_checks)


def _run(part: Any, kind: str, expected: Mapping[str, str] | None) -> dict[str, str]:
    subject = Subject.of(part, kind)
    if subject.kind != kind:
        raise TypeError(f"{subject.name} is not a {kind.replace('_', ' ')}; check it with check_{subject.kind}")
    expected = _known_names(expected, kind)
    subject = replace(subject, expected=frozenset(expected))
    outcome: dict[str, str] = {}
    failures: list[PluginContractError] = []
    for check in _CHECKS[kind]:
        try:
            check(subject)
        except SkipTest as reason:
            outcome[check.__name__] = f"skipped: {reason}"
        except PluginContractError as error:
            if check.__name__ in expected:
                outcome[check.__name__] = f"expected to fail: {expected[check.__name__]}"
            else:
                failures.append(error)
        else:
            outcome[check.__name__] = "passed"
    if len(failures) == 1:
        raise failures[0]
    if failures:
        listing = "\n".join(f"  - {failure}".replace("\n", "\n  ") for failure in failures)
        raise PluginContractError(
            f"{subject.name} fails {len(failures)} of {len(_CHECKS[kind])} checks:\n{listing}"
        ) from failures[0]
    return outcome


def _known_names(expected: Mapping[str, str] | None, *kinds: str) -> Mapping[str, str]:
    names = {check.__name__ for kind in kinds for check in _CHECKS[kind]}
    where = " or ".join(kind.replace("_", " ") for kind in kinds)
    for name in expected or {}:
        if name not in names:
            raise ValueError(f"expected_failed_checks: {name!r} is no check of a {where}.{did_you_mean(name, names)}")
    return expected or {}


def parametrize_with_checks(
    parts: Iterable[Any], *, expected_failed_checks: Mapping[str, str] | None = None, kind: str = "world_model"
) -> Callable[[Callable[..., Any]], Any]:
    """
    Make a decorator for pytest: one test for every part and check, with ids such as ``GPModel-check_step_shapes`` that ``-k``
    understands::

        @parametrize_with_checks([GPModel, MyPlanner], expected_failed_checks={"check_cuda": "CPU only"})
        def test_contract(part, check):
            check(part)

    :param parts: instances, classes, factories or records; world models, planners and imaginations may be mixed
    :param expected_failed_checks: the checks that are known to fail, and the reason of each; if such a check passes, the test
        fails, so that the list stays up to date
    :param kind: the kind of part that bare factories make: ``"world_model"``, ``"planner"`` or ``"imagination"``
    """
    import pytest

    if kind not in _CHECKS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(_CHECKS)}")
    subjects = [Subject.of(part, kind) for part in parts]
    expected = _known_names(expected_failed_checks, *sorted({subject.kind for subject in subjects}))
    subjects = [replace(subject, expected=frozenset(expected)) for subject in subjects]
    parameters = [
        pytest.param(
            subject,
            check,
            id=f"{subject.name}-{check.__name__}",
            marks=[pytest.mark.xfail(reason=expected[check.__name__], strict=True, raises=PluginContractError)]
            if check.__name__ in expected
            else [],
        )
        for subject in subjects
        for check in _CHECKS[subject.kind]
    ]
    return pytest.mark.parametrize(("part", "check"), parameters)
