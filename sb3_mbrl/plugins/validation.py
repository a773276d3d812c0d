"""Checks of a model's results against the contract. They are cheap: an agent runs them once, the kit on every result."""

import torch as th

from sb3_mbrl.contracts import Prediction, WorldModel
from sb3_mbrl.plugins.faults import Fault, contract_error
from sb3_mbrl.trees import State, batch_size, describe, tree_items

_PREDICTION = (
    "`step` returns a Prediction: rewards and probabilities of termination (B,), a state of the same shapes and types"
)
_METRICS = "`fit` returns plain numbers by name, which are logged under model/"


def prediction_fault(model: WorldModel, state: State, action: th.Tensor, prediction: object) -> Fault | None:
    """Describe the first fault of a prediction; ``None`` if there is none."""
    if not isinstance(prediction, Prediction):
        return Fault(
            f".step returned {type(prediction).__name__}, expected sb3_mbrl.contracts.Prediction",
            "return Prediction(state, reward, terminated)",
        )
    rows = len(action)
    for name in ("reward", "terminated", "discount"):
        value = getattr(prediction, name)
        if value is None and name == "discount":
            continue
        if not isinstance(value, th.Tensor):
            return Fault(
                f".step returned {name} as {type(value).__name__}, expected a tensor of shape ({rows},)",
                f"return one {name} per row, as a tensor on the model's device",
            )
        if tuple(value.shape) != (rows,):
            return Fault(
                f".step returned {name} of shape {tuple(value.shape)}, expected ({rows},)",
                f"return one {name} per row: {name}[:, 0] where a network's output has a last axis of 1",
            )
        if not value.is_floating_point():
            meaning = " (the probability of termination)" if name == "terminated" else ""
            return Fault(f".step returned {name} as {value.dtype}, expected floats{meaning}", f"return {name}.float()")
        if value.device.type != model.device.type:
            return Fault(f".step returned {name} on {value.device}, expected {model.device}", "make it on self.device")
    return _state_fault(model, state, prediction.state) or _probability_fault(prediction.terminated)


def _state_fault(model: WorldModel, before: State, after: State) -> Fault | None:
    try:
        size = batch_size(after)
    except (TypeError, ValueError) as error:
        return Fault(
            f".step returned no valid state: {error}",
            "return nested dictionaries, lists and tuples of tensors, each with the batch as its first axis",
        )
    if describe(after) != describe(before):
        return Fault(
            f".step turned a state {describe(before)} into {describe(after)} (here {size} rows came back)",
            "return a state of the same structure and shapes as the one that came in",
        )
    for (name, left), (_, right) in zip(tree_items(before), tree_items(after), strict=True):
        if left.dtype != right.dtype:
            return Fault(
                f".step turned the state leaf {name} of {left.dtype} into {right.dtype}",
                f"keep the type of {name}, as `initial` and `filter` made it",
            )
        if right.device.type != model.device.type:
            return Fault(f".step returned the state leaf {name} on {right.device}, expected {model.device}", "make it there")
    return None


def _probability_fault(terminated: th.Tensor) -> Fault | None:
    # NaN passes: rollouts mask and count rows that are not finite.
    outside = (terminated < 0) | (terminated > 1)
    if bool(outside.any()):
        value = float(terminated[outside][0])
        return Fault(
            f".step returned terminated = {value:.4g}, expected a probability in [0, 1] (not a logit)",
            "return terminated.sigmoid() where the network's output is a logit",
        )
    return None


def validate_prediction(model: WorldModel, state: State, action: th.Tensor, prediction: object) -> None:
    """
    Check types, shapes, devices and the range of ``terminated``.

    :param model: the model that made the prediction
    :param state: the state before the step, ``(B, ...)``
    :param action: the scaled actions, ``(B, A)``
    :param prediction: the result of :meth:`~sb3_mbrl.contracts.WorldModel.step`
    :raises PluginContractError: which describes the fault
    """
    if fault := prediction_fault(model, state, action, prediction):
        raise contract_error(type(model).__name__, model, fault, check="check_step_shapes", required=_PREDICTION)


def metrics_fault(metrics: object) -> Fault | None:
    """Describe the fault of a result of :meth:`~sb3_mbrl.contracts.WorldModel.fit` in the same way."""
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        return Fault(
            f".fit returned {type(metrics).__name__}, expected a dictionary of metrics by name",
            'return a dictionary such as {"loss": 0.1, "epochs": 5}; an empty one if there is nothing to log',
        )
    for name, value in metrics.items():
        if not isinstance(value, (int, float)):
            return Fault(
                f".fit returned metrics that are no plain numbers: {name!r} is {value!r}", f"return float({name}) in its place"
            )
    return None


def validate_metrics(model: WorldModel, metrics: object) -> None:
    """
    Check the metrics of a fit.

    :param model: the model that was fitted
    :param metrics: the result of :meth:`~sb3_mbrl.contracts.WorldModel.fit`
    :raises PluginContractError: which describes the fault
    """
    if fault := metrics_fault(metrics):
        raise contract_error(type(model).__name__, model, fault, check="check_fit_one_row", required=_METRICS)
