"""One mistake, one message, which names key, file and line, requirement and remedy; what a part lacks is not tried."""

import inspect
import re
from functools import partial
from pathlib import Path
from unittest import SkipTest

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import (
    Imagination,
    MissingCapability,
    Planner,
    PlannerSpec,
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.value_expansion import ValueExpansion
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import (
    LinearToy,
    NeighbourToy,
    RecurrentToy,
    check_imagination,
    check_planner,
    check_world_model,
    parametrize_with_checks,
    world_model_checks,
)
from sb3_mbrl.testing.kit import Subject
from tests.testing.broken_imaginations import BROKEN_IMAGINATIONS, HorizonEnds
from tests.testing.broken_models import BROKEN_MODELS, FlatFeatures, NegativeVariance
from tests.testing.broken_planners import BROKEN_PLANNERS, Shooting

HERE = Path(__file__)

# ------------------------------------------------------------------------------- toy plug-ins, each with one mistake: "# here"


class ColumnOfRewards(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward[:, None])


class Logits(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(terminated=prediction.terminated - 3.0)


class DoubleState(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(state={"obs": prediction.state["obs"].double()})


class MissingKey(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        state["velocity"]  # here
        return super().step(state, action, deterministic=deterministic, generator=generator)


class OnlyDict(NeighbourToy):
    """Takes dictionaries only, so that the kit tries these."""

    def __init__(self, observation_space, action_space, **kwargs):
        if not isinstance(observation_space, spaces.Dict):
            raise UnsupportedSpace("OnlyDict takes Dict observations")
        super().__init__(observation_space, action_space, **kwargs)


class DoublePosition(OnlyDict):
    def decode(self, state):
        obs = super().decode(state)
        return {**obs, "position": obs["position"].double()}


class NoMode(OnlyDict):
    def decode(self, state):
        return {"position": super().decode(state)["position"]}


class FarPosition(OnlyDict):
    def decode(self, state):
        obs = super().decode(state)
        return {**obs, "position": obs["position"] + 10.0}


class NoKeywords(NeighbourToy):
    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space, device="cpu")


class FailsForCategories(NeighbourToy):
    def __init__(self, observation_space, action_space, **kwargs):
        super().__init__(observation_space, action_space, **kwargs)
        self.width = observation_space.shape[0] if not isinstance(observation_space, spaces.Dict) else 1  # here


class NoGenerator(NeighbourToy):
    def fit(self, data, budget=None):
        return super().fit(data, budget)


class FailsToFit(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        self.scale = 1 / 0  # here
        return super().fit(data, budget, generator=generator)


class LongContext(NeighbourToy):
    context = 0  # here


class Increments(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        state["obs"] += 1.0
        return super().step(state, action, deterministic=deterministic, generator=generator)


class DrawsGlobally(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + 0.01 * th.rand(len(action)))


class Centres(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward - prediction.reward.mean())


class TensorMetrics(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        return {"error": th.tensor(super().fit(data, budget, generator=generator)["rows"])}


class NeedsTwoRows(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        if len(data) < 2:
            raise IndexError("no rows to hold out")  # here
        return super().fit(data, budget, generator=generator)


class ForgetsData(NeighbourToy):
    def extra_state(self):
        return {**super().extra_state(), "outputs": self._outputs + 1.0}


class CountsInABuffer(NeighbourToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("steps", th.zeros((), dtype=th.int64))


class MeanLoss(RecurrentToy):
    def loss(self, batch, start=None, *, generator=None):
        loss = super().loss(batch, start, generator=generator)
        return loss._replace(rows={name: value.mean() for name, value in loss.rows.items()})


class OldLoss(RecurrentToy):
    def loss(self, batch, start=None, *, generator=None):
        return super().loss(batch, start, generator=generator).total()


class LeaksEpisodes(RecurrentToy):
    def filter(self, obs, actions, is_first):
        return super().filter(obs, actions, th.zeros_like(is_first))


class Unscaled(Shooting):
    def plan(self, *args, **kwargs):
        plan = super().plan(*args, **kwargs)
        return plan._replace(action=plan.action * 2)


class SpoilsCarry(Shooting):
    def plan(self, model, state, carry, **kwargs):
        if carry is not None:
            carry += 1
        return super().plan(model, state, carry, **kwargs)


class DividesByNothing(Shooting):
    def plan(self, model, state, carry, **kwargs):
        1 / 0  # noqa: B018  # here
        return super().plan(model, state, carry, **kwargs)


class FloatMask(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        imagined = super().imagine(world_model, starts, act, horizon, generator=generator)
        return imagined._replace(valid=imagined.valid.float())


# check, plug-in, place of the mistake, words of the fault (with the key), words of the requirement, words of the remedy
WRONG = [
    ("check_step_shapes", ColumnOfRewards, "step", "reward of shape (1, 1)", "Rewards and probabilities", "reward[:, 0]"),
    ("check_step_shapes", Logits, "step", "terminated = -3", "probabilities of", "terminated.sigmoid()"),
    ("check_step_shapes", DoubleState, "step", "state['obs'] of torch.float32", "same shapes", "keep the type"),
    (
        "check_step_shapes",
        MissingKey,
        "step",
        "raised KeyError: 'velocity'",
        "a state of the same shapes",
        "MissingCapability",
    ),
    (
        "check_decode",
        DoublePosition,
        "decode",
        "obs['position'] as torch.float64",
        "valid members of the space",
        "SB3's layout",
    ),
    ("check_decode", NoMode, "decode", "returned the keys ['position']", "members of the space", "SB3's layout"),
    ("check_decode", FarPosition, "decode", "obs['position'] = [", "valid members of the space", "SpaceCodec.project"),
    (
        "check_signatures",
        NoKeywords,
        "",
        "unexpected keyword argument 'reward_fn'",
        "arguments",
        "reward_fn, termination_fn, device",
    ),
    ("check_spaces", FailsForCategories, "__init__", "for the spaces of case 'discrete'", "refused with", "UnsupportedSpace"),
    ("check_signatures", NoGenerator, "fit", "cannot be called as fit(data, budget,", "arguments", "generator)`"),
    ("check_attributes", FailsToFit, "fit", ".fit raised ZeroDivisionError", "learns from real", "mend the line"),
    ("check_attributes", LongContext, "context", "context is 0", "follow the contract", "1 is the observation alone"),
    ("check_no_side_effects", Increments, "step", "the state['obs'] that it was given", "neither the model", "x = x + 1"),
    ("check_global_randomness", DrawsGlobally, "step", "torch's global random stream", "global random", "generator=generator"),
    ("check_row_independence", Centres, "step", "another reward when", "does not depend on the other", "over the batch"),
    ("check_fit_one_row", TensorMetrics, "fit", "numbers: 'error' is tensor", "single transition", "float(error)"),
    (
        "check_fit_one_row",
        NeedsTwoRows,
        "fit",
        "raised IndexError: no rows to hold out (on one row)",
        "single",
        "return early",
    ),
    (
        "check_save_load",
        ForgetsData,
        "extra_state",
        "the deterministic state['obs'] differs",
        "restore predictions",
        "extra_state()",
    ),
    ("check_state_dict", CountsInABuffer, "", "['steps'] is torch.int64", "a float tensor", "keep 'steps'"),
    ("check_loss", MeanLoss, "loss", "the term 'obs_loss' of shape ()", "one value per row", "value.mean(1)"),
    ("check_loss", OldLoss, "loss", "returned Tensor, expected", "contracts.Loss", "return Loss(rows="),
    pytest.param(
        "check_filter",
        LeaksEpisodes,
        "filter",
        "another episode leaks into state['belief']",
        "ignores steps",
        "start anew",
        marks=pytest.mark.slow,
    ),
    ("check_features", FlatFeatures, "features", "of shape (8,) for a start state", "one ``F``", "features.flatten(1)"),
    ("check_members", NegativeVariance, "members", "a negative variance", "not negative", "not its logarithm"),
    ("check_plan_shapes", Unscaled, "plan", "returned action with values up to", "as SB3 stores them", "scaled to [-1, 1]"),
    ("check_plan_carry", SpoilsCarry, "plan", "changed the carry", "belongs to the caller", "return a new carry"),
    ("check_plan_shapes", DividesByNothing, "plan", "ZeroDivisionError: division", "Actions are", "mend the line"),
    ("check_imagination_shapes", FloatMask, "imagine", "valid as torch.float32", "no rows are removed", "valid.bool()"),
    (
        "check_imagination_horizon_is_no_termination",
        HorizonEnds,
        "imagine",
        "the horizon is a",
        "cut off",
        "model's prediction",
    ),
]


def check(part):
    kinds = {Planner: check_planner, Imagination: check_imagination}
    return next((run for base, run in kinds.items() if issubclass(part, base)), check_world_model)(part)


def line_of(part, name):
    """The line that is marked as wrong, else the first one of the method; of the class if no method is named."""
    lines, first = inspect.getsourcelines(part)
    marked = [number for number, text in enumerate(lines, first) if text.rstrip().endswith("# here")]
    if marked:
        return marked[0]
    defined = [number for number, text in enumerate(lines, first) if name and f"def {name}(" in text]
    return defined[0] if defined else first


@pytest.mark.parametrize(
    ("name", "part", "place", "fault", "required", "remedy"), WRONG, ids=lambda value: getattr(value, "__name__", "")
)
def test_one_mistake_gives_one_message_with_everything_that_its_author_needs(name, part, place, fault, required, remedy):
    with pytest.raises(PluginContractError) as caught:
        check(part)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5, caught.value
    assert lines[0].startswith(part.__name__)
    assert fault in lines[0]
    where = re.fullmatch(r"  where: (\S+):(\d+) \((.+)\)", lines[1])
    assert where
    assert Path(where[1]).resolve() == Path(inspect.getsourcefile(part)).resolve()
    assert int(where[2]) == line_of(part, place)
    assert where[3] == (f"{part.__name__}.{place}" if place else part.__name__)
    assert lines[2].startswith("  required: ")
    assert required in lines[2]
    assert lines[3].startswith("  remedy: ")
    assert remedy in lines[3]
    assert lines[4] == f"  [contract v2, {name}]"


# The checks that meet the mistakes of these plug-ins first, where it is not the one that was written for it.
MET_EARLIER = {
    "check_state_operations": {"check_row_independence"},
    "check_fit_constant_data": {"check_fit_one_row"},
    "check_rollout_learned": {"check_step_shapes"},
    "check_plan_carry": {"check_plan_determinism"},
    "check_imagination_nonfinite": {"check_imagination_ends"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name, part, _ in BROKEN_MODELS + BROKEN_PLANNERS + BROKEN_IMAGINATIONS],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_no_mistake_gives_two_messages(name, part):
    with pytest.raises(PluginContractError) as caught:
        check(part)
    (met,) = re.findall(r"\[contract v2, (\w+)\]", str(caught.value))
    assert met == name or met in MET_EARLIER.get(name, ())


def test_pytest_shows_one_failure_and_skips_what_it_spoils():
    """The parametrised tests share a subject, in any order."""
    (subject, *_), checks = zip(
        *(parameter.values for parameter in parametrize_with_checks([ColumnOfRewards]).mark.args[1]), strict=True
    )
    outcomes = {}
    for one in reversed(checks):
        try:
            one(subject)
            outcomes[one.__name__] = "passed"
        except (PluginContractError, SkipTest) as error:
            outcomes[one.__name__] = type(error).__name__
    assert [name for name, what in outcomes.items() if what == "PluginContractError"] == ["check_step_shapes"]
    assert outcomes["check_save_load"] == "_NotTried"
    assert outcomes["check_attributes"] == "passed"


def test_a_failure_that_is_expected_spoils_nothing():
    report = check_world_model(DrawsGlobally, {name: "known" for name in NAMES_OF_DRAWING})
    assert report["check_global_randomness"] == "expected to fail: known"
    assert report["check_decode"] == "passed"
    assert not [name for name, outcome in report.items() if "not tried" in outcome]


NAMES_OF_DRAWING = [check.__name__ for check in world_model_checks()]


# -------------------------------------------------------------------------------------------- what a part does not support


def test_spaces_that_the_record_does_not_support_are_never_built():
    built = []

    def factory(observation_space, action_space, **kwargs):
        built.append(observation_space)
        if not isinstance(observation_space, spaces.Box):
            raise RuntimeError("never asked for")
        return LinearToy(observation_space, action_space, **kwargs)

    def supports(observation_space, action_space):
        fits = isinstance(observation_space, spaces.Box) and observation_space.shape == (3,)
        return None if fits else "vectors of three numbers"

    report = check_world_model(WorldModelSpec(name="three", factory=factory, supports=supports))
    assert report["check_spaces"] == "passed"
    assert {space.shape for space in built} == {(3,)}


def test_a_planner_of_one_kind_of_actions_is_tried_with_these_alone():
    built = []

    def factory(action_space):
        built.append(action_space)
        return Shooting(action_space)

    def supports(observation_space, action_space):
        return None if isinstance(action_space, spaces.Box) else "numbers only"

    report = check_planner(PlannerSpec(name="numbers", factory=factory, supports=supports))
    assert report["check_plan_shapes"] == "passed"
    assert report["check_plan_action_mask"] == "skipped: numbers takes no Discrete actions"
    assert all(isinstance(space, spaces.Box) for space in built)


class NoMasks(Shooting):
    def plan(self, model, state, carry, *, action_mask=None, prior=None, **kwargs):
        if action_mask is not None:
            raise MissingCapability("NoMasks cannot mask actions")
        if prior is not None:
            raise MissingCapability("NoMasks takes no prior")
        return super().plan(model, state, carry, **kwargs)


class NoFeatures(NeighbourToy):
    def features(self, state):
        raise MissingCapability("NoFeatures has no features")


def test_capabilities_that_are_missing_are_skipped():
    report = check_planner(NoMasks)
    assert report["check_plan_action_mask"] == "skipped: NoMasks cannot mask actions"
    assert report["check_plan_prior"] == "skipped: not supported: NoMasks takes no prior"
    report = check_world_model(NoFeatures)
    assert report["check_features"] == "skipped: not supported: NoFeatures has no features"
    assert report["check_no_side_effects"] == report["check_global_randomness"] == "passed"


def test_an_imagination_without_rollouts_is_not_asked_for_any():
    assert set(check_imagination(ValueExpansion).values()) == {
        "skipped: ValueExpansion stores no rollouts (it is no RolloutImagination)"
    }


def test_a_class_within_a_function_is_not_pickled():
    class Local(LinearToy):
        pass

    assert check_world_model(Local)["check_pickle_and_deepcopy"].startswith("skipped: Local cannot be imported")


# ---------------------------------------------------------------------------------------------------------------- factories


def test_a_factory_of_something_else():
    def three(observation_space, action_space, **kwargs):
        return 3

    with pytest.raises(PluginContractError, match=r"^three's factory returned int, expected a world model\.") as caught:
        check_world_model(three)
    line = inspect.getsourcelines(three)[1]
    assert f"{HERE.name}:{line} (test_a_factory_of_something_else.<locals>.three)" in str(caught.value)


def test_a_partial_is_located_by_what_it_builds():
    with pytest.raises(PluginContractError) as caught:
        check_world_model(Subject("curried", "world_model", partial(ColumnOfRewards, k=2)))
    assert str(caught.value).startswith("curried.step returned reward of shape (1, 1)")
    assert "(ColumnOfRewards.step)" in str(caught.value)
