"""Checks of a model's results against the contract. They are cheap: an agent runs them once, the kit on every result."""

import torch as th

from sb3_mbrl.contracts import CONTRACT_VERSION, Prediction, WorldModel
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.trees import State, batch_size, describe, tree_leaves


def prediction_fault(model: WorldModel, state: State, action: th.Tensor, prediction: object) -> str | None:
    """Describe the first fault of a prediction, as a clause that follows the model's name; ``None`` if there is none."""
    if not isinstance(prediction, Prediction):
        return f".step returned {type(prediction).__name__}, expected sb3_mbrl.contracts.Prediction"
    rows = len(action)
    for name in ("reward", "terminated", "discount"):
        value = getattr(prediction, name)
        if value is None and name == "discount":
            continue
        if not isinstance(value, th.Tensor):
            return f".step returned {name} as {type(value).__name__}, expected a tensor of shape ({rows},)"
        if tuple(value.shape) != (rows,):
            return f".step returned {name} of shape {tuple(value.shape)}, expected ({rows},)"
        if not value.is_floating_point():
            return f".step returned {name} as {value.dtype}, expected floats" + (
                " (the probability of termination)" if name == "terminated" else ""
            )
        if value.device.type != model.device.type:
            return f".step returned {name} on {value.device}, expected {model.device}"
    return _state_fault(model, state, prediction.state) or _probability_fault(prediction.terminated)


def _state_fault(model: WorldModel, before: State, after: State) -> str | None:
    try:
        size = batch_size(after)
    except (TypeError, ValueError) as error:
        return f".step returned no valid state: {error}"
    if describe(after) != describe(before):
        return f".step turned a state {describe(before)} into {describe(after)}; shapes must stay (here {size} rows came back)"
    for left, right in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if left.dtype != right.dtype:
            return f".step turned a state leaf of {left.dtype} into {right.dtype}; types must stay"
        if right.device.type != model.device.type:
            return f".step returned a state on {right.device}, expected {model.device}"
    return None


def _probability_fault(terminated: th.Tensor) -> str | None:
    # NaN passes: rollouts mask and count rows that are not finite.
    outside = (terminated < 0) | (terminated > 1)
    if bool(outside.any()):
        return (
            f".step returned terminated = {float(terminated[outside][0]):.4g}, expected a probability in [0, 1] (not a logit)"
        )
    return None


def validate_prediction(model: WorldModel, state: State, action: th.Tensor, prediction: object) -> None:
    """
    Check types, shapes, devices and the range of ``terminated``.

    :param model: the model that made the prediction
    :param state: the state before the step, ``(B, ...)``
    :param action: the scaled actions, ``(B, A)``
    :param prediction: the result of :meth:`~sb3_mbrl.contracts.WorldModel.step`
    :raises PluginContractError: with one sentence that describes the fault
    """
    if fault := prediction_fault(model, state, action, prediction):
        raise PluginContractError(f"{type(model).__name__}{fault}. [contract v{CONTRACT_VERSION}, check_step_shapes]")


def metrics_fault(metrics: object) -> str | None:
    """Describe the fault of a result of :meth:`~sb3_mbrl.contracts.WorldModel.fit` in the same way."""
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        return f".fit returned {type(metrics).__name__}, expected a dictionary of metrics by name"
    wrong = {name: value for name, value in metrics.items() if not isinstance(value, (int, float))}
    return f".fit returned metrics that are no plain numbers: {wrong}" if wrong else None


def validate_metrics(model: WorldModel, metrics: object) -> None:
    """
    Check the metrics of a fit.

    :param model: the model that was fitted
    :param metrics: the result of :meth:`~sb3_mbrl.contracts.WorldModel.fit`
    :raises PluginContractError: with one sentence that describes the fault
    """
    if fault := metrics_fault(metrics):
        raise PluginContractError(f"{type(model).__name__}{fault}. [contract v{CONTRACT_VERSION}, check_fit_one_row]")
