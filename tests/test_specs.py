"""The records of plug-ins: their defaults, and what a version of the contract promises."""

import dataclasses

import pytest
from gymnasium import spaces

from sb3_mbrl import contracts, specs
from sb3_mbrl.specs import (
    CHANGED_IN_2,
    CONTRACT_VERSION,
    AlgorithmSpec,
    EnvFunctionsSpec,
    ImaginationSpec,
    PartSpec,
    PlannerSpec,
    WorldModelSpec,
)

KINDS = {
    AlgorithmSpec: "algorithm",
    WorldModelSpec: "world_model",
    PlannerSpec: "planner",
    ImaginationSpec: "imagination",
    EnvFunctionsSpec: "env_functions",
}


@pytest.mark.parametrize("cls", KINDS)
def test_a_record_needs_a_name_and_a_factory_only(cls):
    record = cls(name="mine", factory=dict)
    assert (record.kind, record.contract, record.summary, record.override) == (KINDS[cls], CONTRACT_VERSION, "", False)
    assert record.supports(spaces.Text(3), spaces.Discrete(2)) is None, "by default a part takes everything"
    with pytest.raises(TypeError, match="factory"):
        cls(name="mine")
    with pytest.raises(TypeError, match="positional"):
        cls("mine", dict)


@pytest.mark.parametrize("cls", KINDS)
def test_a_record_cannot_be_changed_and_is_its_values(cls):
    record = cls(name="mine", factory=dict)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "yours"
    assert record == cls(name="mine", factory=dict)
    assert record != cls(name="mine", factory=list)
    assert dataclasses.replace(record, override=True).override


def test_what_is_special_to_a_kind():
    assert AlgorithmSpec(name="x", factory=dict).base == ""
    assert WorldModelSpec(name="x", factory=dict).auto_rank is None, "no candidate for 'auto' unless it says so"
    assert EnvFunctionsSpec(name="x", factory=dict).env_ids == ()


def test_every_kind_of_record_is_listed_here():
    records = {value for value in vars(specs).values() if isinstance(value, type) and issubclass(value, PartSpec)}
    assert records - {PartSpec} == set(KINDS)


def test_plug_ins_find_the_records_beside_the_contracts():
    assert all(getattr(contracts, cls.__name__) is cls for cls in KINDS)
    assert contracts.CONTRACT_VERSION == CONTRACT_VERSION == 2


def test_what_changed_names_what_an_author_has_to_do():
    for word in ("contracts.Loss", "held_out", "RolloutImagination", "sampler", "prior(state, generator)", "docs/plugins.md"):
        assert word in CHANGED_IN_2
