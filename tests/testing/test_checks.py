"""The kit finds what is wrong: for every check a part that breaks it, and the sentence that its author reads."""

import re
from unittest import SkipTest

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_mbrl.contracts import (
    Imagination,
    ImaginationSpec,
    Imagined,
    MemberPrediction,
    Plan,
    Planner,
    PlannerSpec,
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import (
    CASES,
    LinearToy,
    NeighbourToy,
    RecurrentToy,
    check_imagination,
    check_planner,
    check_world_model,
    imagination_checks,
    parametrize_with_checks,
    planner_checks,
    validate_prediction,
    world_model_checks,
)

CHECKS = {check.__name__: check for check in (*world_model_checks(), *planner_checks(), *imagination_checks())}


def stepping(change, base=NeighbourToy):
    """A model whose predictions go through ``change(prediction, state, action, generator)``."""

    class Broken(base):
        def step(self, state, action, *, deterministic=False, generator=None):
            prediction = super().step(state, action, deterministic=deterministic, generator=generator)
            return change(prediction, state, action, generator)

    return Broken


class SilentlyRefusing(NeighbourToy):
    def __init__(self, observation_space, action_space, **kwargs):
        if isinstance(observation_space, spaces.Discrete):
            raise UnsupportedSpace
        super().__init__(observation_space, action_space, **kwargs)


class Crashing(NeighbourToy):
    def __init__(self, observation_space, action_space, **kwargs):
        kwargs["k"] = observation_space.shape[0]
        super().__init__(observation_space, action_space, **kwargs)


class NoContext(NeighbourToy):
    context = 0


class Unfitted(LinearToy):
    fitted = False


class NeverFitted(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self.fitted = False
        return metrics


class Small(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        if len(action) > 5000:
            raise MemoryError("too many rows")
        return super().step(state, action, deterministic=deterministic, generator=generator)


class Moody(NeighbourToy):
    calls = 0

    def step(self, state, action, *, deterministic=False, generator=None):
        self.calls += 1
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + 1e-3 * self.calls)


class Counting(Moody):
    def extra_state(self):
        return {**super().extra_state(), "calls": self.calls}


class NumpyFit(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        np.random.permutation(10)
        return super().fit(data, budget, generator=generator)


class InPlace(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        state["obs"] += 1.0
        return super().step(state, action, deterministic=deterministic, generator=generator)


class NotClipped(LinearToy):
    def decode(self, state):
        return state + 100.0


class FlatDecode(NeighbourToy):
    def decode(self, state):
        return state["obs"].double()


class FlatFeatures(NeighbourToy):
    def features(self, state):
        return state["obs"][:, 0]


class FragileFar(NeighbourToy):
    def step(self, state, action, *, deterministic=False, generator=None):
        if state["obs"].abs().max() > 100:
            raise OverflowError("numbers too large")
        return super().step(state, action, deterministic=deterministic, generator=generator)


class ScaledActions(NeighbourToy):
    def known(self, flat, action, next_flat, reward, terminated):
        if self.reward_fn is None:
            return reward, terminated
        arguments = self.codec.decode(flat), action, self.codec.decode(next_flat)
        return self.reward_fn(*arguments), self.termination_fn(*arguments).float()


class IgnoresKnown(NeighbourToy):
    def known(self, flat, action, next_flat, reward, terminated):
        return reward, terminated


class LeakyFilter(RecurrentToy):
    def filter(self, obs, actions, is_first):
        return super().filter(obs, actions, th.zeros_like(is_first))


class ReadsLastAction(RecurrentToy):
    def filter(self, obs, actions, is_first):
        state = super().filter(obs, actions, is_first)
        belief, last = state["belief"]
        return {"belief": (belief + actions[:, -1, :1], last)}


class LeakyObserve(RecurrentToy):
    def observe(self, state, action, obs, is_first):
        return super().observe(state, action, obs, th.zeros_like(is_first))


class OneMember(NeighbourToy):
    def members(self, state, action):
        prediction = self.step(state, action, deterministic=True)
        mean = prediction.state["obs"]
        return MemberPrediction(mean, th.zeros_like(mean), prediction.reward, prediction.terminated)


class NegativeVariance(NeighbourToy):
    def members(self, state, action):
        prediction = self.step(state, action, deterministic=True)
        mean = prediction.state["obs"][None]
        return MemberPrediction(mean, mean * 0 - 1, prediction.reward[None], prediction.terminated[None])


class NeedsTwoRows(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        if len(data) < 2:
            raise IndexError("empty holdout")
        return super().fit(data, budget, generator=generator)


class DividesByDeviation(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs = self._outputs / self._inputs.std(0).max()
        return metrics


class TensorMetrics(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        return {"loss": th.tensor(super().fit(data, budget, generator=generator)["rows"])}


class LearnsNothing(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs = th.zeros_like(self._outputs)
        return metrics


class OnlyRewards(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._outputs[:, :-2] = 0
        return metrics


class RandomFit(NeighbourToy):
    fits = 0

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        type(self).fits += 1
        self._outputs = self._outputs + 1e-3 * type(self).fits
        return metrics


class LossPerRow(RecurrentToy):
    def fit(self, data, budget=None, *, generator=None):
        self.fitted = True
        return {}

    def loss(self, batch):
        loss, states, metrics = super().loss(batch)
        return loss.expand(8), states, metrics


class DetachedLoss(LossPerRow):
    def loss(self, batch):
        loss, states, metrics = RecurrentToy.loss(self, batch)
        return loss.detach(), states, metrics


class ForeignOptimizer(LossPerRow):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.optimizer = th.optim.Adam([nn.Parameter(p.detach().clone()) for p in self.parameters()])


class IntegerBuffer(NeighbourToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("elites", th.arange(3))


class Forgetful(NeighbourToy):
    def extra_state(self):
        return {**super().extra_state(), "outputs": self._outputs + 1.0}


class ForgetsFitted(NeighbourToy):
    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self.fitted = False


class FitsOnce(NeighbourToy):
    loaded = False

    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self.loaded = True

    def fit(self, data, budget=None, *, generator=None):
        if self.loaded:
            raise RuntimeError("no optimiser state")
        return super().fit(data, budget, generator=generator)


class Unpicklable(NeighbourToy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = lambda x: x


_SHARED: dict[str, th.Tensor] = {}


class Sharing(NeighbourToy):
    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        _SHARED["outputs"] = self._outputs
        return metrics

    def step(self, state, action, *, deterministic=False, generator=None):
        self._outputs = _SHARED.get("outputs", self._outputs)
        return super().step(state, action, deterministic=deterministic, generator=generator)


BROKEN_MODELS = [
    ("check_spaces", SilentlyRefusing, r"refused the spaces of case 'discrete' without a word"),
    ("check_spaces", Crashing, r"raised (TypeError|IndexError) for the spaces of case '.*UnsupportedSpace"),
    ("check_attributes", NoContext, r"\.context is 0, expected an integer of at least 1"),
    ("check_attributes", Unfitted, r"neither fit nor loss, so it is known: say fitted = True"),
    ("check_attributes", NeverFitted, r"\.fitted is False after fit"),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(reward=p.reward[:, None])),
        r"\.step returned reward of shape \(1, 1\), expected \(1,\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(terminated=p.terminated - 3)),
        r"terminated = -3.*\(not a logit\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(terminated=p.terminated > 1)),
        r"terminated as torch.bool, expected floats",
    ),
    ("check_step_shapes", stepping(lambda p, *_: tuple(p)), r"\.step returned tuple, expected .*Prediction"),
    ("check_step_shapes", stepping(lambda p, *_: p._replace(reward=0.0)), r"reward as float, expected a tensor"),
    ("check_step_shapes", stepping(lambda p, *_: p._replace(discount=p.reward[:, None])), r"discount of shape \(1, 1\)"),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(state={"obs": p.state["obs"].double()})),
        r"state leaf of torch.float32 into torch.float64",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(state=p.state["obs"])),
        r"turned a state \{obs: \(1, 3\)\} into \(1, 3\)",
    ),
    (
        "check_step_shapes",
        stepping(lambda p, *_: p._replace(reward=p.reward / 0)),
        r"not finite on data that it was fitted on",
    ),
    ("check_large_batch", Small, r"raised MemoryError: too many rows"),
    (
        "check_row_independence",
        stepping(lambda p, *_: p._replace(reward=p.reward - p.reward.mean())),
        r"another prediction when it is alone",
    ),
    (
        "check_row_independence",
        stepping(lambda p, *_: p._replace(reward=p.reward + th.arange(len(p.reward)))),
        r"another prediction when the rows are shuffled",
    ),
    ("check_determinism", Moody, r"different predictions for generators of the same seed"),
    (
        "check_determinism",
        stepping(lambda p, s, a, g: p._replace(reward=th.rand(p.reward.shape, generator=g))),
        r"deterministic=True\) depends on the generator",
    ),
    (
        "check_global_randomness",
        stepping(lambda p, *_: p._replace(reward=th.rand(len(p.reward)))),
        r"\.step drew from torch's global",
    ),
    ("check_global_randomness", NumpyFit, r"\.fit drew from NumPy's global"),
    ("check_no_side_effects", InPlace, r"changed the state or the action that it was given"),
    ("check_no_side_effects", Counting, r"changed its own weights or extra state"),
    (
        "check_state_operations",
        stepping(lambda p, *_: p._replace(reward=p.reward + th.arange(len(p.reward)))),
        r"whose rows were repeated",
    ),
    ("check_decode", NotClipped, r"\.decode returned = \[.*no member of Box"),
    ("check_decode", FlatDecode, r"\.decode returned as torch.float64, expected torch.float32"),
    ("check_features", FlatFeatures, r"\.features returned torch.float32 of shape \(8,\)"),
    ("check_far_out_of_distribution", FragileFar, r"raised OverflowError"),
    ("check_known_functions", ScaledActions, r"ActionCodec.to_env"),
    ("check_known_functions", IgnoresKnown, r"did not ask the known reward"),
    ("check_filter", LeakyFilter, r"another episode leaks"),
    ("check_filter", ReadsLastAction, r"looks at the last action"),
    ("check_observe", LeakyObserve, r"remembers the last episode"),
    ("check_members", OneMember, r"mean of shape \(8, 3\), expected \(8, 8, 3\)"),
    ("check_members", NegativeVariance, r"negative variance"),
    ("check_fit_one_row", NeedsTwoRows, r"\.fit raised IndexError on one row: empty holdout"),
    ("check_fit_one_row", TensorMetrics, r"figures that are no plain numbers"),
    ("check_fit_constant_data", DividesByDeviation, r"not finite after a fit on constant data"),
    ("check_fit_learns", LearnsNothing, r"did not learn the reward"),
    ("check_fit_learns", OnlyRewards, r"did not learn the next observation"),
    ("check_fit_determinism", RandomFit, r"different models for the same seed"),
    ("check_loss", LossPerRow, r"tensor of shape \(8,\), expected one number"),
    ("check_loss", DetachedLoss, r"without a gradient"),
    ("check_optimizer", ForeignOptimizer, r"parameters that are not the model's"),
    ("check_state_dict", IntegerBuffer, r"state_dict\(\)\['elites'\] is torch.int64.*extra_state"),
    ("check_save_load", Forgetful, r"predicts something else after extra_state and state_dict"),
    ("check_save_load", ForgetsFitted, r"lost whether the model is fitted"),
    ("check_fit_after_load", FitsOnce, r"raised RuntimeError: no optimiser state"),
    ("check_pickle_and_deepcopy", Unpicklable, r"raised (AttributeError|PicklingError)"),
    ("check_pickle_and_deepcopy", Sharing, r"changed when a copy of it was fitted"),
    (
        "check_rollout_learned",
        stepping(lambda p, s, a, g: p._replace(state={"obs": p.state["obs"].exp().exp().exp()})),
        r"lost 100% of rows",
    ),
]


@pytest.mark.parametrize(("name", "model", "message"), BROKEN_MODELS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_world_model_is_found(name, model, message):
    with pytest.raises(PluginContractError) as caught:
        CHECKS[name](model)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith(model.__name__)
    assert text.endswith(f"[contract v1, {name}]")


def test_every_world_model_check_can_fail():
    """A check that nothing fails checks nothing. (CUDA: see the toys on a machine that has it.)"""
    assert {name for name, *_ in BROKEN_MODELS} == {check.__name__ for check in world_model_checks()} - {"check_cuda"}


class DataShaped(NeighbourToy):
    """Its parameters have as many rows as its data."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._resize(0)

    def _resize(self, rows):
        self.bias = nn.Parameter(th.zeros(rows))

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._resize(len(self._outputs))
        with th.no_grad():
            self.bias.fill_(0.25)
        return metrics

    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + self.bias.mean())

    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self._resize(len(self._outputs))


def test_parameters_shaped_by_data_survive_because_extra_state_comes_first():
    for name in ("check_save_load", "check_fit_after_load", "check_state_dict", "check_pickle_and_deepcopy"):
        CHECKS[name](DataShaped)


# ------------------------------------------------------------------------------------------------------- running the checks


def test_the_report_says_what_came_of_every_check():
    report = check_world_model(LinearToy)
    assert set(report) == {check.__name__ for check in world_model_checks()}
    assert report["check_step_shapes"] == "passed"
    assert report["check_loss"] == "skipped: LinearToy has no loss"


def test_all_failures_are_listed_at_once():
    wrong = stepping(lambda p, *_: p._replace(reward=p.reward[:, None]), LinearToy)
    with pytest.raises(PluginContractError, match=r"Broken fails \d+ of \d+ checks:\n  - Broken") as caught:
        check_world_model(wrong)
    assert "check_spaces]" in str(caught.value)
    assert "check_step_shapes]" in str(caught.value)


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
        CHECKS["check_spaces"](spec)

    def supports(observation_space, action_space):
        try:
            LinearToy(observation_space, action_space)
        except UnsupportedSpace as reason:
            return str(reason)
        return None

    CHECKS["check_spaces"](WorldModelSpec(name="toy", factory=LinearToy, supports=supports))


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


def test_validate_prediction():
    model = LinearToy(CASES[0].observation_space, CASES[0].action_space, device="cpu")
    state, action = th.zeros(32, 3), th.zeros(32, 2)
    prediction = model.step(state, action)
    validate_prediction(model, state, action, prediction)
    message = r"LinearToy\.step returned reward of shape \(32, 1\), expected \(32,\)\. \[contract v1, check_step_shapes\]"
    with pytest.raises(PluginContractError, match=message):
        validate_prediction(model, state, action, prediction._replace(reward=prediction.reward[:, None]))
    with pytest.raises(PluginContractError, match=r"turned a state \(32, 3\) into \(31, 3\)"):
        validate_prediction(model, state, action, prediction._replace(state=prediction.state[1:]))
    # What is not finite is masked by whoever rolls out, row by row.
    validate_prediction(model, state, action, prediction._replace(terminated=prediction.terminated * float("nan")))


# ----------------------------------------------------------------------------------------------------------------- planners


class Shooting(Planner):
    """Random sequences, the best one's first action; the last plan is one of the candidates."""

    horizon, candidates = 4, 64
    spoil_carry = remember = forget_nothing = ignore_mask = out_of_bounds = False

    def __init__(self, action_space):
        if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise UnsupportedSpace("Shooting takes Box and Discrete")
        super().__init__(action_space)

    def _draw(self, rows, action_mask, generator):
        shape = (rows * self.candidates, self.horizon)
        if isinstance(self.action_space, spaces.Box):
            return 2 * th.rand((*shape, *self.action_space.shape), generator=generator) - 1
        weights = th.ones(rows, int(self.action_space.n)) if action_mask is None or self.ignore_mask else action_mask.float()
        draws = th.multinomial(weights, self.candidates * self.horizon, replacement=True, generator=generator)
        return draws.view(*shape, 1) + int(self.action_space.start)

    def plan(
        self, model, state, carry, *, is_first, action_mask=None, prior=None, value=None, deterministic=False, generator=None
    ):
        rows = len(is_first)
        sequences = self._draw(rows, action_mask, generator)
        if carry is not None and action_mask is None:
            keep = th.zeros_like(is_first) if self.forget_nothing else is_first
            view = sequences.view(rows, self.candidates, self.horizon, -1)
            view[~keep, 0] = carry[~keep]
            if self.spoil_carry:
                carry += 1
        batch, total = state.repeat_interleave(self.candidates, dim=0), 0.0
        for t in range(self.horizon):
            prediction = model.step(batch, sequences[:, t], deterministic=True)
            batch, total = prediction.state, total + prediction.reward
        total = total + (getattr(self, "calls", 0) if self.remember else 0)
        best = total.view(rows, -1).argmax(1)
        chosen = sequences.view(rows, self.candidates, self.horizon, -1)[th.arange(rows), best]
        action = chosen[:, 0] * (2 if self.out_of_bounds else 1)
        return Plan(action, chosen, chosen)


def variant(base=Shooting, **attributes):
    return type("Variant", (base,), attributes)


class Rowless(Shooting):
    def plan(self, *args, **kwargs):
        plan = super().plan(*args, **kwargs)
        return plan._replace(action=plan.action[0])


class GlobalNoise(Shooting):
    def plan(self, *args, generator=None, **kwargs):
        return super().plan(*args, generator=None, **kwargs)


class Remembering(Shooting):
    last = None

    def plan(self, model, state, carry, **kwargs):
        plan = super().plan(model, state, carry, **kwargs)
        action = plan.action if self.last is None else self.last[: len(plan.action)].flip(0)
        self.last = plan.action
        return plan._replace(action=action) if len(action) == len(plan.action) else plan


class Pushing(Shooting):
    def plan(self, model, state, carry, **kwargs):
        state += 1.0
        return super().plan(model, state, carry, **kwargs)


class Random(Shooting):
    def plan(self, model, state, carry, *, is_first, generator=None, action_mask=None, **kwargs):
        sequence = self._draw(len(is_first), action_mask, generator).view(len(is_first), self.candidates, self.horizon, -1)[
            :, 0
        ]
        return Plan(sequence[:, 0], sequence, sequence)


class UsesOldPlan(Shooting):
    """Repeats its last plan, also into a new episode."""

    def plan(self, model, state, carry, **kwargs):
        plan = super().plan(model, state, carry, **kwargs)
        return plan if carry is None else plan._replace(action=carry[:, 1])


BROKEN_PLANNERS = [
    ("check_plan_shapes", variant(out_of_bounds=True), r"action with values up to .* scaled to \[-1, 1\]"),
    ("check_plan_shapes", Rowless, r"action of shape \(2,\), expected \(1, 2\)"),
    ("check_plan_determinism", GlobalNoise, r"\.plan drew from torch's global random stream"),
    ("check_plan_carry", variant(spoil_carry=True), r"changed the carry that it was given"),
    ("check_plan_carry", Remembering, r"remembers another call"),
    ("check_plan_is_first", UsesOldPlan, r"uses the carry of the last episode"),
    ("check_plan_side_effects", Pushing, r"changed the model or the state"),
    (
        "check_plan_action_mask",
        variant(ignore_mask=True),
        r"chose the actions .* where only \[0, 1, 2, 0, 1, 2\] were allowed",
    ),
    ("check_plan_improves", Random, r"where random actions reach"),
]


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


# -------------------------------------------------------------------------------------------------------------- imagination


def imagining(change):
    class Broken(BranchedRollouts):
        def imagine(self, world_model, starts, act, horizon, *, generator=None):
            return change(super().imagine(world_model, starts, act, horizon, generator=generator))

    return Broken


class FloatHorizon(BranchedRollouts):
    def horizon(self, num_timesteps):
        return num_timesteps / 1000


class Careless(Imagination):
    """Rolls on whatever happens."""

    freq, starts_per_step, max_age = 1, 1.0, 1

    def horizon(self, num_timesteps):
        return 1

    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        rows, state = [], starts
        for _ in range(horizon):
            obs = world_model.decode(state)
            action = act(obs)
            prediction = world_model.step(state, action, generator=generator)
            state = prediction.state
            rows.append((obs, action, world_model.decode(state), prediction.reward, prediction.terminated))
        columns = [th.stack(column) for column in zip(*rows, strict=True)]
        return Imagined(*columns, None, th.ones_like(columns[-1], dtype=th.bool))


class HorizonEnds(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        imagined = super().imagine(world_model, starts, act, horizon, generator=generator)
        imagined.terminated[-1] = 1.0
        return imagined


class GlobalActs(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        return super().imagine(world_model, starts, act, horizon)


class EditsStarts(BranchedRollouts):
    def imagine(self, world_model, starts, act, horizon, *, generator=None):
        imagined = super().imagine(world_model, starts, act, horizon, generator=generator)
        starts += 1
        return imagined


BROKEN_IMAGINATIONS = [
    ("check_imagination_settings", FloatHorizon, r"\.horizon\(0\) returned 0\.0, expected an integer of at least 1"),
    (
        "check_imagination_settings",
        variant(BranchedRollouts, freq=property(lambda self: 0, lambda self, v: None)),
        r"\.freq is 0",
    ),
    ("check_imagination_shapes", imagining(lambda i: i._replace(reward=i.reward[..., None])), r"reward of shape \(1, 16, 1\)"),
    (
        "check_imagination_shapes",
        imagining(lambda i: i._replace(valid=i.valid.float())),
        r"valid as torch.float32, expected booleans",
    ),
    ("check_imagination_shapes", imagining(lambda i: i._replace(terminated=i.terminated + 0.5)), r"neither 0 nor 1"),
    ("check_imagination_shapes", imagining(lambda i: i._replace(obs=i.obs.flatten(0, 1))), r"obs of shape \(16, 3\)"),
    ("check_imagination_ends", Careless, r"valid rows after their rollout had terminated"),
    (
        "check_imagination_ends",
        imagining(lambda i: i._replace(valid=i.valid & (i.terminated == 0))),
        r"no valid terminated row",
    ),
    ("check_imagination_horizon_is_no_termination", HorizonEnds, r"the horizon is a truncation"),
    ("check_imagination_continuity", imagining(lambda i: i._replace(obs=i.next_obs)), r"not the next_obs of the step before"),
    ("check_imagination_nonfinite", Careless, r"valid rows that are not finite"),
    ("check_imagination_determinism", GlobalActs, r"\.imagine drew from torch's global random stream"),
    ("check_imagination_determinism", EditsStarts, r"changed the start states"),
]


@parametrize_with_checks([BranchedRollouts, ImaginationSpec(name="branched", factory=BranchedRollouts)])
def test_branched_rollouts_pass(part, check):
    check(part)


def test_check_imagination_reports():
    assert set(check_imagination(BranchedRollouts(horizon=3)).values()) == {"passed"}


@pytest.mark.parametrize(("name", "part", "message"), BROKEN_IMAGINATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_imagination_is_found(name, part, message):
    with pytest.raises(PluginContractError, match=message):
        CHECKS[name](part)


def test_every_imagination_check_can_fail():
    assert {name for name, *_ in BROKEN_IMAGINATIONS} == {check.__name__ for check in imagination_checks()}


def test_skips_are_skips_and_not_failures():
    with pytest.raises(SkipTest, match="has no loss"):
        CHECKS["check_loss"](LinearToy)
