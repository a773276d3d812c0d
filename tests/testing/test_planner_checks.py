"""The kit's checks of planners: for each a planner that breaks it."""

import pytest
from gymnasium import spaces

from sb3_mbrl.contracts import (
    PlannerSpec,
)
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import check_planner, planner_checks
from tests.testing.broken_planners import BROKEN_PLANNERS, Shooting

CHECKS = {check.__name__: check for check in planner_checks()}


def test_a_sound_planner_passes():
    report = check_planner(Shooting)
    assert set(report.values()) == {"passed"}
    instance = check_planner(Shooting(spaces.Box(-1.0, 1.0, (2,))))
    assert instance["check_plan_action_mask"] == "skipped: Shooting takes no Discrete actions"
    assert check_planner(PlannerSpec(name="shooting", factory=Shooting)) == report


@pytest.mark.parametrize(("name", "planner", "message"), BROKEN_PLANNERS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_planner_is_found(name, planner, message):
    with pytest.raises(PluginContractError, match=message):
        CHECKS[name](planner)


def test_every_planner_check_can_fail():
    assert {name for name, *_ in BROKEN_PLANNERS} == {check.__name__ for check in planner_checks()}
