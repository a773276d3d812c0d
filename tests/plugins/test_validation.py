"""Checks of a model's results: each fault names model, method, value, what was expected, and the remedy."""

import pytest
import torch as th

from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.plugins.validation import metrics_fault, prediction_fault, validate_metrics
from sb3_mbrl.testing import CASES, LinearToy, NeighbourToy, validate_prediction

BOX = CASES[0].observation_space, CASES[0].action_space


def test_validate_prediction():
    model = LinearToy(CASES[0].observation_space, CASES[0].action_space, device="cpu")
    state, action = th.zeros(32, 3), th.zeros(32, 2)
    prediction = model.step(state, action)
    validate_prediction(model, state, action, prediction)
    message = r"LinearToy\.step returned reward of shape \(32, 1\), expected \(32,\)\.\n(.|\n)*v2, check_step_shapes\]$"
    with pytest.raises(PluginContractError, match=message):
        validate_prediction(model, state, action, prediction._replace(reward=prediction.reward[:, None]))
    with pytest.raises(PluginContractError, match=r"turned a state \(32, 3\) into \(31, 3\)"):
        validate_prediction(model, state, action, prediction._replace(state=prediction.state[1:]))
    # What is not finite is masked by whoever rolls out, row by row.
    validate_prediction(model, state, action, prediction._replace(terminated=prediction.terminated * float("nan")))


@pytest.fixture
def step():
    """A model with a nested state, a state of 4 rows, actions, and what the model predicts."""
    model = NeighbourToy(*BOX, device="cpu")
    state, action = {"obs": th.zeros(4, 3)}, th.zeros(4, 2)
    return model, state, action, LinearToy(*BOX, device="cpu").step(state["obs"], action)._replace(state=state)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"reward": 1.0}, ".step returned reward as float, expected a tensor of shape (4,)"),
        ({"reward": None}, ".step returned reward as NoneType, expected a tensor of shape (4,)"),
        ({"reward": th.zeros(4, dtype=th.long)}, ".step returned reward as torch.int64, expected floats"),
        ({"terminated": th.zeros(3)}, ".step returned terminated of shape (3,), expected (4,)"),
        (
            {"terminated": th.zeros(4, dtype=th.bool)},
            ".step returned terminated as torch.bool, expected floats (the probability of termination)",
        ),
        (
            {"terminated": th.tensor([0.0, 1.0, 1.5, -2.0])},
            ".step returned terminated = 1.5, expected a probability in [0, 1] (not a logit)",
        ),
        ({"discount": th.zeros(())}, ".step returned discount of shape (), expected (4,)"),
        (
            {"state": {"obs": th.zeros(4, 3, dtype=th.float64)}},
            ".step turned the state leaf state['obs'] of torch.float32 into torch.float64",
        ),
        (
            {"state": {"obs": 3.0}},
            ".step returned no valid state: A State holds tensors in dicts, lists and tuples, not float",
        ),
    ],
)
def test_each_fault_is_described(step, changes, fault):
    model, state, action, prediction = step
    found = prediction_fault(model, state, action, prediction._replace(**changes))
    assert found.what == fault
    assert found.remedy


def test_a_sound_prediction_has_no_fault(step):
    model, state, action, prediction = step
    assert prediction_fault(model, state, action, prediction) is None
    assert prediction_fault(model, state, action, prediction._replace(discount=th.full((4,), -0.9))) is None, "two players"


def test_something_else_than_a_prediction(step):
    model, state, action, prediction = step
    fault = prediction_fault(model, state, action, tuple(prediction))
    assert fault.what == ".step returned tuple, expected sb3_mbrl.contracts.Prediction"


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        (None, ".fit returned NoneType, expected a dictionary of metrics by name"),
        ({1: 0.5}, ".fit returned dict, expected a dictionary of metrics by name"),
        ({"loss": "low"}, ".fit returned metrics that are no plain numbers: 'loss' is 'low'"),
        ({}, None),
        ({"loss": 0.5, "epochs": 3}, None),
    ],
)
def test_metrics_are_plain_numbers_by_name(metrics, fault):
    found = metrics_fault(metrics)
    assert (found and found.what) == fault
    model = LinearToy(*BOX, device="cpu")
    if fault is None:
        validate_metrics(model, metrics)
    else:
        with pytest.raises(PluginContractError) as caught:
            validate_metrics(model, metrics)
        assert str(caught.value).startswith(f"LinearToy{fault}.\n  where: ")
        assert str(caught.value).endswith("[contract v2, check_fit_one_row]")
