"""The kit's checks of rollout rules: for each a rule that breaks it."""

import pytest

from sb3_mbrl.contracts import (
    ImaginationSpec,
)
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.infoprop import InformedRollouts
from sb3_mbrl.imagination.m2ac import MaskedRollouts
from sb3_mbrl.imagination.macura import TrustedRollouts
from sb3_mbrl.imagination.mopo import PenalisedRollouts
from sb3_mbrl.imagination.wimle import ConfidentRollouts
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import (
    check_imagination,
    imagination_checks,
    parametrize_with_checks,
)
from tests.testing.broken_imaginations import BROKEN_IMAGINATIONS

CHECKS = {check.__name__: check for check in imagination_checks()}


@parametrize_with_checks([BranchedRollouts, ImaginationSpec(name="branched", factory=BranchedRollouts)])
def test_branched_rollouts_pass(part, check):
    check(part)


@parametrize_with_checks([TrustedRollouts, InformedRollouts, MaskedRollouts, PenalisedRollouts, ConfidentRollouts])
def test_the_rules_against_model_errors_pass(part, check):
    check(part)


def test_check_imagination_reports():
    assert set(check_imagination(BranchedRollouts(horizon=3)).values()) == {"passed"}


@pytest.mark.parametrize(("name", "part", "message"), BROKEN_IMAGINATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_imagination_is_found(name, part, message):
    with pytest.raises(PluginContractError, match=message):
        CHECKS[name](part)


def test_every_imagination_check_can_fail():
    assert {name for name, *_ in BROKEN_IMAGINATIONS} == {check.__name__ for check in imagination_checks()}
