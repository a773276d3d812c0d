"""The gradient planner, and what it needs of a model."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.planners import ILQR, GradientPlanner
from tests.planners.problems import ONE, Line, plan


@pytest.mark.parametrize("cls", [GradientPlanner, ILQR])
def test_gradients_need_numbers(cls):
    with pytest.raises(UnsupportedSpace, match=r"continuous actions, not Discrete.*'cem'"):
        cls(spaces.Discrete(3))


@pytest.mark.parametrize("cls", [GradientPlanner, ILQR])
def test_gradients_need_a_differentiable_model(cls):
    class Rounded(Line):
        def step(self, state, action, **kwargs):
            return super().step(state, (action.detach() > 0).float(), **kwargs)

    with pytest.raises(MissingCapability, match="differentia"):
        plan(cls(ONE, horizon=3), Rounded(), [[0.0]])


def test_gradients_do_not_touch_the_model():
    """The plan is differentiated, not the network that it goes through."""
    model = EnsembleModel(spaces.Box(-1.0, 1.0, (2,)), ONE, members=2, elites=2, hidden=[8], device="cpu")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    plan(GradientPlanner(ONE, horizon=2, population=2, iterations=3), model, [[0.1, 0.2]])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(th.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
