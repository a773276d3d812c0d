"""The kit's helpers: subjects, messages, comparisons."""

import random
from unittest import SkipTest

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import ImaginationSpec, PlannerSpec, UnsupportedSpace, WorldModelSpec
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.planners import CEM
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import CASES, LinearToy, NeighbourToy, WeightedToy
from sb3_mbrl.testing.kit import (
    Subject,
    Violation,
    close_values,
    contract_check,
    first_difference,
    kind_of,
    member_fault,
    same_values,
    start_states,
    untouched_rng,
)

BOX = CASES[0]


# ---- subjects


@pytest.mark.parametrize(
    ("part", "name", "kind"),
    [
        (LinearToy, "LinearToy", "world_model"),
        (LinearToy(BOX.observation_space, BOX.action_space, device="cpu"), "LinearToy", "world_model"),
        (WorldModelSpec(name="mine", factory=LinearToy), "mine", "world_model"),
        (WorldModelSpec(name="lazy", factory="sb3_mbrl.testing.toys:LinearToy"), "lazy", "world_model"),
        (CEM, "CEM", "planner"),
        (PlannerSpec(name="mine", factory=CEM), "mine", "planner"),
        (BranchedRollouts(), "BranchedRollouts", "imagination"),
        (ImaginationSpec(name="mine", factory=BranchedRollouts), "mine", "imagination"),
    ],
)
def test_a_subject_of_every_way_to_give_a_part(part, name, kind):
    subject = Subject.of(part, kind)
    assert (subject.name, subject.kind) == (name, kind)
    assert Subject.of(subject, kind) is subject


def test_a_bare_factory_is_of_the_kind_that_is_asked_for():
    def make(observation_space, action_space, **kwargs):
        return LinearToy(observation_space, action_space, **kwargs)

    assert kind_of(make, "planner") == "planner"
    subject = Subject.of(make, "world_model")
    assert subject.name == "make"
    assert isinstance(subject.world_model(BOX), LinearToy)


def test_a_class_is_tried_with_many_spaces_and_an_instance_with_its_own():
    assert Subject.of(LinearToy, "world_model").cases() == CASES
    model = LinearToy(BOX.observation_space, BOX.action_space, device="cpu")
    (case,) = Subject.of(model, "world_model").cases()
    assert (case.name, case.observation_space) == ("its own", BOX.observation_space)


def test_home_is_the_first_case_that_the_model_takes():
    class Integers(NeighbourToy):
        def __init__(self, observation_space, action_space, **kwargs):
            if not isinstance(observation_space, spaces.MultiDiscrete):
                raise UnsupportedSpace("only MultiDiscrete")
            super().__init__(observation_space, action_space, **kwargs)

    assert Subject.of(Integers, "world_model").home().name == "multi-discrete"


def test_models_are_built_alike_and_the_global_stream_does_not_move():
    subject, before = Subject.of(WeightedToy, "world_model"), th.get_rng_state()
    one, other = subject.world_model(), subject.world_model()
    assert one is not other
    assert same_values(one.state_dict(), other.state_dict())
    assert th.equal(th.get_rng_state(), before)


def test_an_instance_is_copied_and_never_built_again():
    model = LinearToy(BOX.observation_space, BOX.action_space, device="cpu", noise=0.5)
    subject = Subject.of(model, "world_model")
    assert subject.world_model() is not model
    assert subject.world_model().noise == 0.5
    with pytest.raises(SkipTest, match="LinearToy was given as an instance; give its class to have this checked"):
        subject.world_model(reward_fn=lambda *_: 0.0)


def test_data_has_the_values_that_the_model_reads():
    subject = Subject.of(WeightedToy, "world_model")
    assert set(subject.data()._side) == set(WeightedToy.extra)
    assert len(subject.data(CASES[-1])) < len(subject.data(BOX)), "fewer rows for images"


def test_models_that_start_from_snapshots_are_skipped():
    class Oracle(LinearToy):
        needs_snapshot = True

    subject = Subject.of(Oracle, "world_model")
    with pytest.raises(SkipTest, match="Oracle starts from snapshots"):
        start_states(subject.world_model(), subject.data(), 3)


# ---- messages


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Violation(".step is late", "be early"), ["LinearToy.step is late.", "Parts are on time.", "be early."]),
        (KeyError("deter"), ["LinearToy raised KeyError: 'deter'.", "Parts are on time.", "mend the line"]),
        (Violation(".fit is late", "be early", "Fits are quick"), ["LinearToy.fit is late.", "Fits are quick.", "be early."]),
    ],
)
def test_failures_name_fault_place_requirement_remedy_and_check(raised, expected):
    @contract_check("world_model")
    def check_it(subject):
        """Parts are on time."""
        raise raised

    with pytest.raises(PluginContractError) as caught:
        check_it(LinearToy)
    fault, where, required, remedy, check = str(caught.value).splitlines()
    assert fault == expected[0]
    assert "toys.py:" in where
    assert required == f"  required: {expected[1]}"
    assert remedy.startswith(f"  remedy: {expected[2]}")
    assert check == "  [contract v2, check_it]"


def test_errors_about_contracts_stay_as_they_are():
    @contract_check("world_model")
    def check_it(subject):
        raise PluginContractError("as it is")

    with pytest.raises(PluginContractError, match=r"^as it is$"):
        check_it(LinearToy)


def test_checks_that_need_a_failed_one_are_not_tried():
    """Of three checks in a row the first fails: one failure, and the reason of the others is its name."""
    tried = []

    @contract_check("world_model")
    def check_first(subject):
        tried.append("first")
        raise Violation(".step is late", "be early")

    @contract_check("world_model", check_first)
    def check_second(subject):
        tried.append("second")

    @contract_check("world_model", check_second)
    def check_third(subject):
        tried.append("third")

    subject = Subject.of(LinearToy, "world_model")
    with pytest.raises(SkipTest, match="not tried, since check_first has failed"):
        check_third(subject)
    with pytest.raises(PluginContractError, match="step is late"):
        check_first(subject)
    assert tried == ["first"], "each runs once"
    check_third(LinearToy)  # alone
    assert tried == ["first", "third"]


def test_the_same_fault_is_reported_once():
    def checks():
        for rows in (3, 4):

            @contract_check("world_model")
            def check(subject, rows=rows):
                raise Violation(f".step returned {rows} rows", "return all")

            check.__name__ = f"check_{rows}"
            yield check

    subject = Subject.of(LinearToy, "world_model")
    subject.judge("check_0", [], lambda subject: None)
    failures = []
    for check in checks():
        try:
            subject.judge(check.__name__, [], lambda subject, check=check: check(LinearToy))
        except (PluginContractError, SkipTest) as error:
            failures.append(str(error).splitlines()[0])
    assert failures == ["LinearToy.step returned 3 rows.", "the same fault as in check_3"]


def test_the_original_error_is_the_cause_and_skips_stay_skips():
    @contract_check("world_model")
    def check_it(subject):
        raise KeyError("deter")

    @contract_check("world_model")
    def check_nothing(subject):
        raise SkipTest("not for this one")

    with pytest.raises(PluginContractError) as caught:
        check_it(LinearToy)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SkipTest, match="not for this one"):
        check_nothing(LinearToy)


# ---- global streams


@pytest.mark.parametrize(
    ("draw", "whose"),
    [(random.random, "Python's"), (np.random.rand, "NumPy's"), (lambda: th.rand(1), "torch's")],
)
def test_global_streams_that_move_are_named(draw, whose):
    with pytest.raises(Violation, match=rf"\.step drew from {whose} global random stream"), untouched_rng(".step"):
        draw()


def test_private_streams_may_move():
    with untouched_rng(".step"):
        th.rand(3, generator=th.Generator().manual_seed(0))
        np.random.default_rng(0).random()


# ---- comparisons

NAN = float("nan")


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (th.tensor([1.0, NAN]), th.tensor([1.0, NAN]), True),
        (th.tensor([1.0]), th.tensor([1.0 + 1e-7]), False),
        (th.tensor([1.0]), th.tensor([1.0], dtype=th.float64), False),
        (th.zeros(2), th.zeros(3), False),
        (np.array([1.0, NAN]), np.array([1.0, NAN]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.zeros(2), th.zeros(2), False),
        ({"a": [th.ones(2), None]}, {"a": [th.ones(2), None]}, True),
        ({"a": th.ones(2)}, {"b": th.ones(2)}, False),
        ([1, 2], (1, 2), False),
        ([1, 2], [1], False),
        ("x", "x", True),
    ],
)
def test_same_means_every_bit(left, right, same):
    assert same_values(left, right) is same


@pytest.mark.parametrize(
    ("left", "right", "place"),
    [
        ({"a": [th.ones(2), 1]}, {"a": [th.ones(2), 2]}, "x['a'][1]"),
        ({"a": th.ones(2)}, {"a": th.ones(2), "b": 0}, "x"),
        (Violation, Subject, None),  # functions and classes are made anew: they tell nothing
        ((th.zeros(1),), (th.zeros(1),), None),
    ],
)
def test_the_first_difference_is_named(left, right, place):
    assert first_difference(left, right, "x") == place


@pytest.mark.parametrize(
    ("left", "right", "close"),
    [
        (th.tensor([1.0, NAN]), th.tensor([1.0 + 1e-6, NAN]), True),
        (th.tensor([1.0]), th.tensor([1.01]), False),
        (th.tensor([1e6, 0.0]), th.tensor([1e6, 10.0]), True),  # relative to the largest value of a leaf
        (th.tensor([1.0, 0.0]), th.tensor([1.0, 10.0]), False),
        (th.zeros(2), th.zeros(3), False),
        ({"a": th.ones(2)}, {"a": th.ones(2), "b": th.ones(1)}, False),
    ],
)
def test_close_means_up_to_rounding(left, right, close):
    assert close_values(left, right) is close


@pytest.mark.parametrize(
    ("space", "obs", "fault"),
    [
        (spaces.Box(-1, 1, (2,)), th.zeros(3, 2), None),
        (spaces.Box(-1, 1, (2,)), th.zeros(3, 4), "obs of shape (3, 4), expected (3, 2)"),
        (spaces.Box(-1, 1, (2,)), th.zeros(3, 2, dtype=th.float64), "obs as torch.float64, expected torch.float32"),
        (spaces.Box(-1, 1, (2,)), np.zeros((3, 2)), "obs as ndarray, expected a tensor of shape (3, 2)"),
        (spaces.Discrete(3, start=1), th.tensor([[1], [3]]), None),
        (spaces.Dict(a=spaces.Box(-1, 1, (2,))), th.zeros(3, 2), "Tensor, expected a dictionary with the keys ['a']"),
        (spaces.Dict(a=spaces.Box(-1, 1, (2,))), {"a": th.zeros(3, 1)}, "obs['a'] of shape (3, 1), expected (3, 2)"),
    ],
)
def test_members_of_a_space(space, obs, fault):
    assert member_fault(space, obs, 2 if isinstance(space, spaces.Discrete) else 3) == fault


def test_a_value_outside_its_space_is_shown():
    assert member_fault(spaces.Box(-1, 1, (2,)), th.full((3, 2), 2.0), 3) == (
        "obs = [2. 2.], which is no member of Box(-1.0, 1.0, (2,), float32)"
    )
    assert member_fault(spaces.Discrete(3), th.tensor([[3]]), 1) == "obs = 3, which is no member of Discrete(3)"
