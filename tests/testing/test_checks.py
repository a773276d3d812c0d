"""Reports, expected failures, and what may be checked."""

import re

import pytest

from sb3_mbrl.contracts import (
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import (
    CASES,
    LinearToy,
    NeighbourToy,
    check_world_model,
    imagination_checks,
    parametrize_with_checks,
    world_model_checks,
)
from sb3_mbrl.testing.learning_checks import check_spaces
from tests.testing.broken_models import FlatFeatures, NegativeVariance, NoContext


def test_the_report_says_what_came_of_every_check():
    report = check_world_model(LinearToy)
    assert set(report) == {check.__name__ for check in world_model_checks()}
    assert report["check_step_shapes"] == "passed"
    assert report["check_loss"] == "skipped: LinearToy has no loss"


def test_all_failures_are_listed_at_once():
    """Two mistakes, two messages."""

    class Wrong(FlatFeatures):
        def members(self, state, action):
            return NegativeVariance.members(self, state, action)

    with pytest.raises(PluginContractError, match=r"Wrong fails 2 of \d+ checks:\n  - Wrong.features") as caught:
        check_world_model(Wrong)
    assert re.findall(r"\w+(?=\]$)", str(caught.value), flags=re.M) == ["check_features", "check_members"]


def test_expected_failures_are_reported_and_do_not_raise():
    report = check_world_model(type("Late", (NoContext, LinearToy), {}), {name: "no context yet" for name in CHECKS_OF_MODELS})
    assert report["check_attributes"] == "expected to fail: no context yet"


CHECKS_OF_MODELS = [check.__name__ for check in world_model_checks()]


def test_unknown_expected_failures_are_refused_with_a_hint():
    with pytest.raises(
        ValueError, match=r"'check_step_shape' is no check of a world model\. Did you mean 'check_step_shapes'"
    ):
        check_world_model(LinearToy, {"check_step_shape": "?"})
    with pytest.raises(ValueError, match="Did you mean 'check_cuda'"):
        parametrize_with_checks([LinearToy], expected_failed_checks={"check_cude": "?"})


def test_a_part_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="BranchedRollouts is not a world model; check it with check_imagination"):
        check_world_model(BranchedRollouts)


def test_an_instance_is_checked_with_its_own_spaces_and_left_alone():
    case = CASES[5]
    model = NeighbourToy(case.observation_space, case.action_space, device="cpu")
    report = check_world_model(model)
    assert report["check_decode"] == "passed"
    assert report["check_known_functions"].startswith("skipped: NeighbourToy was given as an instance")
    assert not model.fitted


def test_a_record_is_checked_against_what_it_says():
    spec = WorldModelSpec(name="toy", factory="sb3_mbrl.testing.toys:LinearToy")
    with pytest.raises(
        PluginContractError, match=r"^toy: its record supports the spaces of case 'discrete', but its factory refuses"
    ):
        check_spaces(spec)

    def supports(observation_space, action_space):
        try:
            LinearToy(observation_space, action_space)
        except UnsupportedSpace as reason:
            return str(reason)
        return None

    check_spaces(WorldModelSpec(name="toy", factory=LinearToy, supports=supports))


def test_a_model_for_one_environment_needs_an_instance():
    class Only(LinearToy):
        def __init__(self, *args, **kwargs):
            raise UnsupportedSpace("a twin of one environment")

    with pytest.raises(PluginContractError, match="give an instance built for it"):
        check_world_model(Only)


def test_parametrize_gives_readable_ids_and_strict_expected_failures():
    mark = parametrize_with_checks([LinearToy, BranchedRollouts], expected_failed_checks={"check_cuda": "CPU only"}).mark
    assert mark.args[0] == ("part", "check")
    parameters = {parameter.id: parameter for parameter in mark.args[1]}
    assert len(parameters) == len(world_model_checks()) + len(imagination_checks())
    assert "BranchedRollouts-check_imagination_shapes" in parameters
    (xfail,) = parameters["LinearToy-check_cuda"].marks
    assert xfail.kwargs["reason"] == "CPU only"
    assert xfail.kwargs["strict"] is True
    assert parameters["LinearToy-check_decode"].marks == []
