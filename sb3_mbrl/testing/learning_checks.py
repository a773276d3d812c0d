"""The checks of a world model's learning and saving."""

import copy
import inspect
import io
import math
import pickle
from collections.abc import Mapping
from typing import Any
from unittest import SkipTest

import torch as th

from sb3_mbrl.contracts import FitBudget, Loss, Obs, WorldModel
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.holdout import BLOCK, Trial
from sb3_mbrl.plugins.validation import metrics_fault, prediction_fault
from sb3_mbrl.testing.kit import (
    SMALL_BUDGET,
    Subject,
    Violation,
    contract_check,
    fit_shortly,
    predict,
    rng,
    same_values,
    some_actions,
    start_states,
    to_device,
)
from sb3_mbrl.testing.toy_data import ToyData
from sb3_mbrl.trees import State, batch_size, finite_rows, tree_leaves, tree_map

LEARNING_BUDGET = FitBudget(max_batches=500, batch_size=64)


def _skip_known(subject: Subject) -> None:
    if not subject.world_model().learns:
        raise SkipTest(f"{subject.name} is known: there is nothing to learn")


def _answers(model: WorldModel, data: ToyData) -> list[Any]:
    """Return the model's predictions for some fixed states and actions, sampled and deterministic."""
    state, action = start_states(model, data, 16), some_actions(model, data, 16)
    return [predict(model, state, action, deterministic=True), predict(model, state, action, seed=4)]


@contract_check("world_model")
def check_fit_one_row(subject: Subject) -> None:
    """A fit on a single transition raises no exception, and predictions are finite afterwards."""
    _fit_little(subject, subject.data(steps=1, n_envs=1), "one row")


@contract_check("world_model")
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
        raise Violation(f".fit raised {type(error).__name__} on {kind}: {error}") from error
    if fault := metrics_fault(metrics):
        raise Violation(fault)
    # A model may declare that it is not fitted yet; then it is not used.
    if model.fitted and not all(finite_rows(answer).all() for answer in _answers(model, data)):
        raise Violation(f".step is not finite after a fit on {kind}")


@contract_check("world_model")
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
        raise Violation(fault)
    unseen = subject.data(steps=50, seed=1)
    window = unseen.contexts(200, model.context, generator=rng(0))
    with th.no_grad():
        state = model.filter(*to_device((window.obs, window.action, window.is_first), model.device))
        prediction = model.step(state, window.action[:, -1].to(model.device), deterministic=True)
    reward = window.reward[:, -1]
    error = float((prediction.reward.cpu() - reward).square().mean())
    if not error < 0.5 * float(reward.var()):
        raise Violation(f".fit did not learn the reward: squared error {error:.3g}, variance {float(reward.var()):.3g}")
    if not model.decodes:
        return
    predicted = model.decode(prediction.state)
    last = tree_map(lambda leaf: leaf[:, -1], (window.obs, window.next_obs))
    error, copied = _distance(predicted, last[1]), _distance(last[0], last[1])
    if not error < 0.5 * copied:
        raise Violation(
            f".fit did not learn the next observation: squared error {error:.3g}, that of copying the last one {copied:.3g}"
        )


def _distance(left: Obs, right: Obs) -> float:
    """Return the mean squared difference; for categories, the share of rows that differ."""

    def one(a: th.Tensor, b: th.Tensor) -> th.Tensor:
        # Images are integers too, but not categories.
        categories = not a.is_floating_point() and a.dim() == 2
        return (a.cpu() != b).float().mean() if categories else (a.cpu().float() - b.float()).square().mean()

    return float(th.stack([one(a.detach(), b) for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True)]).sum())


@contract_check("world_model")
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
        raise Violation(f" was judged by rows that it has learned from, although there were {steps} steps to divide")
    if verdict.trusted:
        raise Violation(
            f".fit has learned its held-out rows by heart: on pure noise its squared error on them is "
            f"{verdict.metrics['vs_trivial']:.2g} of a trivial predictor's. Train on data.transitions() or data.sequences() "
            "alone, and store nothing else; data.held_out() is for early stopping and for choosing among members"
        )


@contract_check("world_model")
def check_fit_determinism(subject: Subject) -> None:
    """The same weights, data and generator give the same model to the last bit."""
    (first, data), (second, _) = subject.fitted(), subject.fitted()
    if not same_values(_answers(first, data), _answers(second, data)):
        raise Violation(
            ".fit gives different models for the same seed: it draws from elsewhere than its generator, or reads the clock"
        )


@contract_check("world_model")
def check_loss(subject: Subject) -> None:
    """A ``loss`` returns a :class:`~sb3_mbrl.contracts.Loss` of tensors, one value per row, with a gradient."""
    model, data = subject.fitted()
    if type(model).loss is WorldModel.loss:
        raise SkipTest(f"{subject.name} has no loss")
    try:
        inspect.signature(model.loss).bind(None, None, generator=None)
    except TypeError as error:
        raise Violation(f".loss cannot be called as loss(batch, start, generator=generator): {error}") from error
    sequential = model.context > 1
    batch = (
        data.sequences(8, 2 * model.context, extra=model.extra, generator=rng(0))
        if sequential
        else data.transitions(8, generator=rng(0))
    )
    loss = model.loss(batch, None, generator=rng(0))
    if fault := _loss_fault(loss, 8):
        raise Violation(f".loss returned {fault}")
    total = loss.total()
    if not bool(total.isfinite()):
        raise Violation(f".loss returned terms with the total {float(total.detach())}, expected a finite number")
    if not total.requires_grad:
        raise Violation(".loss returned terms without a gradient")


def _loss_fault(loss: Any, rows: int) -> str | None:
    """Describe the first fault of a loss of ``rows`` rows; ``None`` if there is none."""
    if not isinstance(loss, Loss):
        return f"{type(loss).__name__}, expected a sb3_mbrl.contracts.Loss: Loss({{name: (B,) tensor, ...}})"
    return _values_fault(loss, rows) or _names_fault(loss) or _states_fault(loss.states, rows)


def _values_fault(loss: Loss, rows: int) -> str | None:
    for name, value in (*loss.rows.items(), *loss.scalars.items(), *loss.metrics.items()):
        if not isinstance(value, th.Tensor):
            return f"{name!r} as {type(value).__name__}, expected a tensor (a float would wait for the accelerator)"
    for name, value in loss.rows.items():
        if value.dim() not in (1, 2) or len(value) != rows:
            return f"the term {name!r} of shape {tuple(value.shape)}, expected one value per row: ({rows},) or ({rows}, T)"
    for name, value in (*loss.scalars.items(), *loss.metrics.items()):
        if value.shape != ():
            return f"{name!r} of shape {tuple(value.shape)} among scalars, expected one number"
    if any(value.requires_grad for value in loss.metrics.values()):
        return "metrics with gradients (Loss.metrics): detach them"
    return None


def _names_fault(loss: Loss) -> str | None:
    terms = {**loss.rows, **loss.scalars}
    if not terms:
        return "a Loss without a single term"
    if unknown := sorted(set(loss.weights) - set(terms)):
        return f"a weight for {unknown[0]!r}, which is none of its terms ({', '.join(terms)})"
    if shared := sorted(set(loss.rows) & set(loss.scalars)):
        return f"{shared[0]!r} both as a term of the rows and as a scalar: give each term a name of its own"
    return None


def _states_fault(states: State | None, rows: int) -> str | None:
    if states is None or batch_size(states) == rows:
        return None
    return f"states of {batch_size(states)} rows for a batch of {rows}"


@contract_check("world_model")
def check_optimizer(subject: Subject) -> None:
    """The optimiser holds the model's own parameters, in a deep copy too."""
    model, _ = subject.fitted()
    for suffix, candidate in (("", model), (" of a deep copy", copy.deepcopy(model))):
        optimizer = candidate.optimizer
        if optimizer is None:
            raise SkipTest(f"{subject.name} has no optimizer")
        if not isinstance(optimizer, th.optim.Optimizer):
            raise Violation(f".optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer or None")
        own = {id(parameter) for parameter in candidate.parameters()}
        if not all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise Violation(f".optimizer{suffix} holds parameters that are not the model's: fit would train something else")


@contract_check("world_model")
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
                f".state_dict()[{name!r}] is {got}, expected floats; counters and indices belong into extra_state()"
            )
    generator = rng(0)
    model.load_state_dict({name: th.rand(value.shape, generator=generator) for name, value in weights.items()})
    state, action = start_states(model, data, 8), some_actions(model, data, 8)
    if fault := prediction_fault(model, state, action, predict(model, state, action)):
        raise Violation(f"{fault} (with random weights)")


def _saved(model: WorldModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Save extra state and weights in a file, and read them back."""
    file = io.BytesIO()
    th.save((pickle.dumps(model.extra_state()), model.state_dict()), file)
    file.seek(0)
    extra, weights = th.load(file, weights_only=False)
    return pickle.loads(extra), weights


def _loaded(subject: Subject, model: WorldModel) -> WorldModel:
    extra, weights = _saved(model)
    fresh = subject.world_model()
    # The extra state comes first: it may determine which parameters exist.
    fresh.load_extra_state(extra)
    fresh.load_state_dict(dict(weights))
    fresh.eval()
    return fresh


@contract_check("world_model")
def check_save_load(subject: Subject) -> None:
    """``extra_state`` and ``state_dict`` restore predictions to the last bit in a fresh model."""
    model, data = subject.fitted()
    fresh = _loaded(subject, model)
    if fresh.fitted != model.fitted:
        raise Violation(".load_extra_state lost whether the model is fitted: extend the dictionary of super().extra_state()")
    if not same_values(_answers(fresh, data), _answers(model, data)):
        raise Violation(
            " predicts something else after extra_state and state_dict went into a fresh model: save what they lack"
        )


@contract_check("world_model")
def check_fit_after_load(subject: Subject) -> None:
    """A loaded model can be fitted further."""
    _skip_known(subject)
    model, _ = subject.fitted()
    fresh, more = _loaded(subject, model), subject.data(seed=1)
    if fault := metrics_fault(fit_shortly(fresh, more, seed=1)):
        raise Violation(fault)
    if not all(finite_rows(answer).all() for answer in _answers(fresh, more)):
        raise Violation(".step is not finite after a loaded model was fitted further")


@contract_check("world_model")
def check_pickle_and_deepcopy(subject: Subject) -> None:
    """Pickled and deep-copied models give the same predictions, and fitting the copy leaves the original alone."""
    model, data = subject.fitted()
    answers = _answers(model, data)
    for how, twin in (("pickled", pickle.loads(pickle.dumps(model))), ("deep-copied", copy.deepcopy(model))):
        if not same_values(_answers(twin, data), answers):
            raise Violation(f" predicts something else when {how}")
    fit_shortly(twin, subject.data(seed=1), seed=1)
    if not same_values(_answers(model, data), answers):
        raise Violation(" changed when a copy of it was fitted: they share something")


@contract_check("world_model")
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
        raise Violation(f".step lost {1 - share:.0%} of rows to numbers that are not finite within 20 steps of its own data")


LEARNING_CHECKS = (
    check_fit_one_row,
    check_fit_constant_data,
    check_fit_learns,
    check_held_out,
    check_fit_determinism,
    check_loss,
    check_optimizer,
    check_state_dict,
    check_save_load,
    check_fit_after_load,
    check_pickle_and_deepcopy,
    check_rollout_learned,
)
