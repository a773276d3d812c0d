"""Known functions survive being saved as JSON values, whatever their classes are called by then."""

import json
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch as th

from sb3_mbrl.envs.known_functions import common
from sb3_mbrl.envs.known_functions.classic_control import (
    ContinuousMountainCarReward,
    MountainCarTermination,
    PendulumReward,
)
from sb3_mbrl.envs.known_functions.common import Never, TerminationReward, VectorFunction
from sb3_mbrl.envs.known_functions.mujoco import DistanceReward, ForwardReward, StandupReward, Unhealthy
from sb3_mbrl.envs.known_functions.saving import from_plain, is_plain, to_plain
from tests.envs.functions import CLASSIC, MUJOCO, functions_of, make

OURS = ["CartPoleBalance-v0", "CartPoleSwingUp-v0"]
INFINITE = Unhealthy(((1, -float("inf"), 0.5), (2, 0.7, float("inf"))), (2, -100.0, 100.0))
FUNCTIONS = [
    Never(),
    INFINITE,
    TerminationReward(1.0, -1.0, INFINITE),
    ForwardReward(0.05, 1.0, 0.1, 1.0, INFINITE),
    ForwardReward(0.05, 1.0, 0.1, unhealthy=None),
    ContinuousMountainCarReward(MountainCarTermination(0.45, 0.0)),
    DistanceReward(((0.5, (17, 20), (14, 17)), (1.0, (8, 11), None)), 0.1, before=True),
    StandupReward(2, 78, 0.003, 0.1, 5e-7, (-float("inf"), 10.0)),
]


@pytest.fixture
def registered(monkeypatch):
    """A registry of its own for classes that a test makes."""
    monkeypatch.setattr(common, "REGISTERED", dict(common.REGISTERED))
    monkeypatch.setattr("sb3_mbrl.envs.known_functions.saving.REGISTERED", common.REGISTERED)
    return common.REGISTERED


def there_and_back(function: VectorFunction) -> VectorFunction:
    return from_plain(json.loads(json.dumps(to_plain(function))))


@pytest.mark.parametrize("positions", [{}, {"exclude_current_positions_from_observation": False}], ids=["hidden", "seen"])
@pytest.mark.parametrize("env_id", CLASSIC + OURS + MUJOCO)
def test_functions_of_every_record_survive(env_id, positions):
    robots = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "Swimmer")
    if positions and env_id.split("-")[0] not in robots:
        pytest.skip("its observation has no option for positions")
    env = make(env_id, **positions)
    functions = functions_of(env_id, env)
    for function in (functions.reward_fn, functions.termination_fn):
        if function is not None:
            again = there_and_back(function)
            assert type(again) is type(function)
            assert again == function
    env.close()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: type(function).__name__)
def test_fields_survive_with_their_types(function):
    assert is_plain(function)
    again = there_and_back(function)
    assert again == function
    assert repr(again) == repr(function)  # tells 1 from 1.0 and True


def test_every_class_of_the_library_is_registered():
    classes, todo = set(), [VectorFunction]
    while todo:
        subclasses = [cls for cls in todo.pop().__subclasses__() if cls.__module__.startswith("sb3_mbrl.")]
        classes, todo = classes | set(subclasses), todo + subclasses
    assert {cls.saved_as for cls in classes} <= set(common.REGISTERED)
    assert len(classes) == 15


def test_names_are_not_paths():
    assert json.dumps(to_plain(TerminationReward(1.0, 0.0, Never()))) == (
        '{"function": "TerminationReward", "fields": {"running": 1.0, "terminal": 0.0, '
        '"termination": {"function": "Never", "fields": {}}}}'
    )


def test_numbers_of_numpy_and_lists_become_plain():
    again = there_and_back(Unhealthy([[np.int64(1), np.float32(0.5), np.float64("inf")]]))
    assert again == Unhealthy(((1, 0.5, float("inf")),))
    assert type(again.limits[0][0]) is int


def users_function(obs, action, next_obs):
    return next_obs[:, 0]


@dataclass(frozen=True)
class UsersReward(PendulumReward):
    """A subclass of a registered class, with another formula."""


@pytest.mark.parametrize("function", [None, users_function, lambda *_: None, UsersReward(2.0), PendulumReward])
def test_functions_of_users_are_not_plain(function):
    assert not is_plain(function)
    with pytest.raises(TypeError, match="cannot be saved as JSON values: it is not of a class that is registered"):
        to_plain(function)


@pytest.mark.parametrize("value", [th.zeros(2), np.zeros(2), users_function, {"a": 1}, UsersReward(1.0)])
def test_fields_that_are_not_plain(value):
    assert not is_plain(TerminationReward(0.0, 1.0, value))
    with pytest.raises(TypeError, match="cannot be saved as JSON values"):
        to_plain(TerminationReward(0.0, 1.0, value))


def test_a_name_that_is_not_registered_says_what_to_do():
    with pytest.raises(ValueError, match=r"'nuclear:Fusion' was saved, but neither sb3-mbrl \d\S* nor a plug-in .*Install"):
        from_plain({"function": "nuclear:Fusion", "fields": {}})
    with pytest.raises(ValueError, match="'nuclear:Fusion' was saved"):
        from_plain(
            {
                "function": "TerminationReward",
                "fields": {"running": 0.0, "terminal": 1.0, "termination": {"function": "nuclear:Fusion", "fields": {}}},
            }
        )


@pytest.mark.parametrize("saved", [{}, {"max_torque": 2.0, "mass": 1.0}])
def test_fields_of_another_version_say_what_to_do(saved):
    with pytest.raises(ValueError, match=r"'PendulumReward' was saved with the fields .* cannot make it from these"):
        from_plain({"function": "PendulumReward", "fields": saved})


@pytest.mark.parametrize("value", [None, {}, [], "Never", {"function": "Never"}, {"function": 1, "fields": {}}])
def test_values_that_are_no_function(value):
    with pytest.raises(ValueError, match="a known function is saved as"):
        from_plain(value)


def test_classes_of_plug_ins_may_register(registered):
    @dataclass(frozen=True)
    class Parked(VectorFunction, saved_as="garage:Parked"):
        speed: float

        def compute(self, obs, action, next_obs):
            return next_obs[..., 0].abs() < self.speed

    again = there_and_back(TerminationReward(0.0, 1.0, Parked(0.1)))
    assert again == TerminationReward(0.0, 1.0, Parked(0.1))
    with pytest.raises(TypeError, match=r"name 'garage:Parked' is taken by .*Parked; give another"):

        class Other(VectorFunction, saved_as="garage:Parked"):
            pass


def test_the_same_class_defined_again_replaces_the_old_one(registered):
    def define():
        @dataclass(frozen=True)
        class Cell(VectorFunction, saved_as="notebook:Cell"):
            def compute(self, obs, action, next_obs):
                return next_obs[..., 0]

        return Cell

    define()
    assert type(there_and_back(define()())) is registered["notebook:Cell"]


def test_a_registered_class_that_is_no_dataclass_is_refused(registered):
    class Loose(VectorFunction, saved_as="loose"):
        def compute(self, obs, action, next_obs):
            return next_obs[..., 0]

    assert not fields(Loose)
    with pytest.raises(TypeError, match="is not a dataclass"):
        to_plain(Loose())
