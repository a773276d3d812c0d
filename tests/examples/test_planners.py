"""The planners' example: its regret, and that every planner of it controls its twin."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "examples" / "planners.py"
SPEC = importlib.util.spec_from_file_location("planners_example", FILE)
planners = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(planners)


def test_regret_by_hand():
    """The regret is relative to the best of all from each start, and 1 for chance."""
    returns = {
        "chance": {"returns": [0.0, 0.0]},
        "a": {"returns": [10.0, 4.0]},
        "b": {"returns": [6.0, 8.0]},
    }
    # Best: 10 and 8. Chance lacks 9 on average, a 2, b 2.
    assert planners.regrets(returns) == {"chance": 1.0, "a": pytest.approx(2 / 9), "b": pytest.approx(2 / 9)}


@pytest.mark.parametrize("task", list(planners.TASKS))
def test_starts_are_the_same_for_all_and_as_they_are_said_to_be(task):
    rows = planners.starts(task).numpy()
    assert len(rows) == 50
    assert np.array_equal(rows, planners.starts(task).numpy())
    cos, sin = (rows[:, 0], rows[:, 1]) if task == "pendulum" else (rows[:, 2], rows[:, 3])
    np.testing.assert_allclose(cos**2 + sin**2, 1.0, rtol=1e-5)
    assert (cos < -0.99).all() == (task == "swing-up")


def test_model_steps_are_counted(monkeypatch):
    """16 sequences of 5 steps, one iteration: 80 a decision for every start."""
    monkeypatch.setitem(planners.TASKS, "pendulum", (planners.PendulumModel, 3, 5))
    monkeypatch.setattr(planners, "STARTS", 4)
    planner = planners.RandomShooting(planners.PendulumModel.env_spaces[1], horizon=5, population=16)
    assert planners.control("pendulum", planner)["model_steps_per_decision"] == 80
