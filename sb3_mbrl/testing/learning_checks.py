"""The checks of a world model's learning, in every kind of space, and of its saving."""

import copy
import io
import math
import pickle
import sys
from collections.abc import Mapping
from typing import Any
from unittest import SkipTest

import torch as th

from sb3_mbrl.contracts import FitBudget, MissingCapability, Obs, UnsupportedSpace, WorldModel
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.holdout import BLOCK, Trial
from sb3_mbrl.plugins.validation import metrics_fault, prediction_fault
from sb3_mbrl.testing.kit import (
    MEMBER_REMEDY,
    SMALL_BUDGET,
    Subject,
    Violation,
    contract_check,
    first_difference,
    fit_shortly,
    member_fault,
    predict,
    raised,
    refused_by,
    rng,
    same_values,
    some_actions,
    start_states,
    to_device,
)
from sb3_mbrl.testing.toy_data import Case, ToyData
from sb3_mbrl.testing.world_model_checks import (
    check_decode,
    check_determinism,
    check_large_batch,
    check_optimizer,
    check_row_independence,
    check_step_shapes,
)
from sb3_mbrl.trees import State, finite_rows, tree_leaves, tree_map

LEARNING_BUDGET = FitBudget(max_batches=500, batch_size=64)


def _skip_known(subject: Subject) -> None:
    if not subject.world_model().learns:
        raise SkipTest(f"{subject.name} is known: there is nothing to learn")


def _answers(model: WorldModel, data: ToyData) -> list[Any]:
    """Return the model's predictions for some fixed states and actions, sampled and deterministic."""
    state, action = start_states(model, data, 16), some_actions(model, data, 16)
    return [predict(model, state, action, deterministic=True), predict(model, state, action, seed=4)]


def _other_answer(left: WorldModel, right: WorldModel, data: ToyData) -> str | None:
    """Return the name of the first predicted value in which two models differ; ``None`` if they agree to the last bit."""
    for how, one, other in zip(("deterministic", "sampled"), _answers(left, data), _answers(right, data), strict=True):
        if name := first_difference(one, other, "prediction"):
            return f"the {how} {name.removeprefix('prediction.')}"
    return None


@contract_check("world_model", check_step_shapes)
def check_fit_one_row(subject: Subject) -> None:
    """A fit on a single transition raises no exception, and predictions are finite afterwards."""
    _fit_little(subject, subject.data(steps=1, n_envs=1), "one row")


@contract_check("world_model", check_fit_one_row)
def check_fit_constant_data(subject: Subject) -> None:
    """A fit on constant data raises no exception and divides by no standard deviation of zero."""
    _fit_little(subject, subject.data(n_envs=1, constant=True), "constant data")


def _fit_little(subject: Subject, data: ToyData, kind: str) -> None:
    """Check that a fit on minimal data raises nothing and leaves finite predictions; ``kind`` names the data in messages."""
    _skip_known(subject)
    model = subject.world_model()
    try:
        metrics = fit_shortly(model, data)
    except Exception as error:
        raise Violation(
            f".fit {raised(error)} (on {kind})",
            "return early where there is too little to learn from; leave fitted = False if the model is of no use then",
        ) from error
    if fault := metrics_fault(metrics):
        raise Violation.of(fault)
    # A model may declare that it is not fitted yet; then it is not used.
    if model.fitted and not all(finite_rows(answer).all() for answer in _answers(model, data)):
        raise Violation(
            f".fit leaves a model whose predictions are not finite after a fit on {kind}",
            "divide by no standard deviation of zero: std.clamp(min=1e-6)",
        )


@contract_check("world_model", check_decode, check_fit_constant_data)
def check_spaces(subject: Subject) -> None:
    """
    Every kind of space is taken and works, or is refused with ``UnsupportedSpace``. Spaces that the record does not support
    are not tried.
    """
    taken = 0
    for case in subject.cases():
        if subject.refusal(case) is not None:
            continue
        try:
            model = subject.world_model(case)
        except UnsupportedSpace as error:
            _check_refusal(subject, case, error)
            continue
        except Violation:
            raise
        except Exception as error:
            raise refused_by(error, case) from error
        _check_case(subject, model, case)
        taken += 1
    if not taken:
        raise Violation(" takes none of the kit's spaces", "if it is made for one environment, give an instance built for it")


def _check_refusal(subject: Subject, case: Case, error: UnsupportedSpace) -> None:
    if subject.spec is not None:
        raise Violation(
            f": its record supports the spaces of case {case.name!r}, but its factory refuses them",
            "let `supports` of its WorldModelSpec return the reason for these spaces",
        ) from error
    if not str(error):
        raise Violation(
            f" refused the spaces of case {case.name!r} without a message",
            "name the spaces that it takes: raise UnsupportedSpace('... takes Box observations')",
        ) from error


def _check_case(subject: Subject, model: WorldModel, case: Case) -> None:
    words = f"case {case.name!r}: {case.observation_space} with {case.action_space}"
    data = subject.data(case)
    try:
        fit_shortly(model, data)
        state, action = start_states(model, data, 4), some_actions(model, data, 4)
        prediction = predict(model, state, action)
    except (SkipTest, MissingCapability):
        raise
    except Exception as error:
        raise Violation(
            f" {raised(error)} ({words})",
            "mend it for these spaces, or refuse them with UnsupportedSpace when the model is built",
        ) from error
    if fault := prediction_fault(model, state, action, prediction):
        raise Violation.of(fault.in_case(words))
    if not model.decodes:
        return
    if member := member_fault(case.observation_space, model.decode(prediction.state), 4):
        raise Violation(f".decode returned {member} ({words})", MEMBER_REMEDY)


@contract_check("world_model", check_row_independence, check_large_batch, check_decode, check_optimizer)
def check_fit_learns(subject: Subject) -> None:
    """
    On unseen data of a linear system, the squared error is less than half of that of copying the observation (if the model
    decodes), and of that of predicting the mean reward.
    """
    _skip_known(subject)
    model = subject.world_model()
    metrics = fit_world_model(model, subject.data(steps=200), LEARNING_BUDGET, generator=rng(0))
    model.eval()
    if fault := metrics_fault(metrics):
        raise Violation.of(fault)
    unseen = subject.data(steps=50, seed=1)
    window = unseen.contexts(200, model.context, generator=rng(0))
    with th.no_grad():
        state = model.filter(*to_device((window.obs, window.action, window.is_first), model.device))
        prediction = model.step(state, window.action[:, -1].to(model.device), deterministic=True)
    reward = window.reward[:, -1]
    error = float((prediction.reward.cpu() - reward).square().mean())
    if not error < 0.5 * float(reward.var()):
        raise Violation(
            f".fit did not learn the reward: squared error {error:.3g}, variance {float(reward.var()):.3g}",
            "compare `fit` and `step`: the same order of columns, the same scales, the same units of actions",
        )
    if not model.decodes:
        return
    predicted = model.decode(prediction.state)
    last = tree_map(lambda leaf: leaf[:, -1], (window.obs, window.next_obs))
    error, copied = _distance(predicted, last[1]), _distance(last[0], last[1])
    if not error < 0.5 * copied:
        raise Violation(
            f".fit did not learn the next observation: squared error {error:.3g}, that of copying the last one {copied:.3g}",
            "compare `fit`, `step` and `decode`: if changes are learned, they are added to the observation again",
        )


def _distance(left: Obs, right: Obs) -> float:
    """Return the mean squared difference; for categories, the share of rows that differ."""

    def one(a: th.Tensor, b: th.Tensor) -> th.Tensor:
        # Images are integers too, but not categories.
        categories = not a.is_floating_point() and a.dim() == 2
        return (a.cpu() != b).float().mean() if categories else (a.cpu().float() - b.float()).square().mean()

    return float(th.stack([one(a.detach(), b) for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True)]).sum())


@contract_check("world_model", check_determinism, check_large_batch, check_decode)
def check_held_out(subject: Subject) -> None:
    """
    On pure noise, the model is no better than a trivial predictor on held-out rows: it has neither stored nor learned from
    them.
    """
    _skip_known(subject)
    model = subject.world_model()
    steps = max(60, 3 * BLOCK * model.context) if model.context > 1 else 60
    trial = Trial(model, subject.data(steps=steps, noise=True).in_replay_buffer(), SMALL_BUDGET)
    trial.fit(rng(0))
    verdict = trial.evaluate()
    if verdict is None or not verdict.unseen:
        raise Violation(
            f".fit was given all rows, although there were {steps} steps to divide",
            "declare holds_out = False only for a model that counts every step; such a model is evaluated before it learns",
        )
    if verdict.trusted:
        raise Violation(
            f".fit has learned its held-out rows by heart: on pure noise its squared error on them is "
            f"{verdict.metrics['vs_trivial']:.2g} of a trivial predictor's",
            "train on data.transitions() or data.sequences() alone, and store nothing else; data.held_out() is for early "
            "stopping and for choosing among members",
        )


@contract_check("world_model", check_determinism)
def check_fit_determinism(subject: Subject) -> None:
    """The same weights, data and generator give the same model to the last bit."""
    (first, data), (second, _) = subject.fitted(), subject.fitted()
    if name := _other_answer(first, second, data):
        raise Violation(
            f".fit gives different models for the same seed: {name} differs",
            "draw from the generator alone, and depend on nothing else (the clock, counters of the class, the order of a set)",
        )


@contract_check("world_model", check_step_shapes)
def check_state_dict(subject: Subject) -> None:
    """
    Every entry is a float tensor (SB3 treats all entries as weights), and predictions survive weights drawn from [0, 1].
    """
    model, data = subject.fitted()
    weights = model.state_dict()
    for name, value in weights.items():
        if not isinstance(value, th.Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, th.Tensor) else type(value).__name__
            raise Violation(
                f".state_dict()[{name!r}] is {got}, expected floats",
                f"keep {name!r} (a counter, an index) in extra_state() in place of a buffer",
            )
    generator = rng(0)
    model.load_state_dict({name: th.rand(value.shape, generator=generator) for name, value in weights.items()})
    state, action = start_states(model, data, 8), some_actions(model, data, 8)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation.of(fault.in_case("with random weights"))


def _saved(model: WorldModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """
    Save extra state and weights in a file, and read them back.

    :raises Violation: for extra state that cannot be pickled
    """
    file, stored = io.BytesIO(), model.extra_state()
    for name, value in stored.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise Violation(
                f".extra_state returned {name!r}, which cannot be pickled: {error}",
                f"store {name!r} as plain values: numbers, strings, arrays, tensors, and lists and dictionaries of these",
            ) from None
    th.save((pickle.dumps(stored), model.state_dict()), file)
    file.seek(0)
    extra, weights = th.load(file, weights_only=False)
    return pickle.loads(extra), weights


def _loaded(subject: Subject, model: WorldModel) -> WorldModel:
    extra, weights = _saved(model)
    fresh = subject.world_model()
    # The extra state comes first: it may determine which parameters exist.
    try:
        fresh.load_extra_state(extra)
    except KeyError as error:
        raise Violation(
            f".extra_state lacks {error}, which load_extra_state takes from it",
            "extend the dictionary of super().extra_state()",
        ) from error
    fresh.load_state_dict(dict(weights))
    fresh.eval()
    return fresh


@contract_check("world_model", check_determinism, check_state_dict)
def check_save_load(subject: Subject) -> None:
    """``extra_state`` and ``state_dict`` restore predictions to the last bit in a fresh model."""
    model, data = subject.fitted()
    fresh = _loaded(subject, model)
    if fresh.fitted != model.fitted:
        raise Violation(
            ".load_extra_state lost whether the model is fitted",
            "extend the dictionary of super().extra_state(), and call super().load_extra_state(extra)",
        )
    if name := _other_answer(fresh, model, data):
        raise Violation(
            f".extra_state and state_dict do not hold all that matters: in a fresh model that was given both, {name} differs",
            "put what they lack into extra_state() and take it back in load_extra_state()",
        )


@contract_check("world_model", check_save_load)
def check_fit_after_load(subject: Subject) -> None:
    """A loaded model can be fitted further."""
    _skip_known(subject)
    model, _ = subject.fitted()
    fresh, more = _loaded(subject, model), subject.data(seed=1)
    if fault := metrics_fault(fit_shortly(fresh, more, seed=1)):
        raise Violation.of(fault)
    if not all(finite_rows(answer).all() for answer in _answers(fresh, more)):
        raise Violation(
            ".fit leaves a model whose predictions are not finite after a loaded model was fitted further",
            "take the normalisers and the optimiser's state back in load_extra_state()",
        )


@contract_check("world_model", check_determinism)
def check_pickle_and_deepcopy(subject: Subject) -> None:
    """Pickled and deep-copied models give the same predictions, and fitting the copy leaves the original alone."""
    model, data = subject.fitted()
    answers = _answers(model, data)
    importable = getattr(sys.modules.get(type(model).__module__), type(model).__qualname__, None) is type(model)
    remedy = "keep no lambdas, open files or module-level dictionaries on the model; copies must own their tensors"
    twins = {} if not importable else {"pickled": pickle.loads(pickle.dumps(model))}
    for how, twin in {**twins, "deep-copied": copy.deepcopy(model)}.items():
        if name := _other_answer(twin, model, data):
            raise Violation(f" gives another result when {how}: {name} differs", remedy)
    fit_shortly(twin, subject.data(seed=1), seed=1)
    if not same_values(_answers(model, data), answers):
        raise Violation(" changed when a copy of it was fitted: they share something", remedy)
    if not importable:
        raise SkipTest(f"{type(model).__name__} cannot be imported by name, so it is not pickled (its deep copy passed)")


@contract_check("world_model", check_step_shapes)
def check_rollout_learned(subject: Subject) -> None:
    """After a fit, rollouts of 20 steps from the data stay finite in nearly all rows."""
    model, data = subject.fitted()
    state: State = start_states(model, data, 64)
    alive = th.ones(64, dtype=th.bool, device=model.device)
    for step in range(20):
        prediction = predict(model, state, some_actions(model, data, 64, seed=step), seed=step)
        alive &= finite_rows(prediction)
        state = prediction.state
    share = float(alive.float().mean())
    if not math.isclose(share, 1.0) and share < 0.9:
        raise Violation(
            f".step lost {1 - share:.0%} of rows to numbers that are not finite within 20 steps of its own data",
            "keep predictions near the data: clip them, or predict the change in place of the value",
        )


LEARNING_CHECKS = (
    check_fit_one_row,
    check_fit_constant_data,
    check_spaces,
    check_fit_learns,
    check_held_out,
    check_fit_determinism,
    check_state_dict,
    check_save_load,
    check_fit_after_load,
    check_pickle_and_deepcopy,
    check_rollout_learned,
)
