"""iLQR beyond the linear-quadratic problem."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.models.analytic import CartPoleSwingUpModel
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.planners import ILQR
from tests.planners.problems import HORIZON, ONE, STARTS, LinearQuadratic, plan


def test_ilqr_takes_a_terminal_value():
    """The Riccati cost-to-go of the second half as the value of the last state of the first half."""
    model = LinearQuadratic()
    best, actions = model.riccati(STARTS, 2 * HORIZON)
    eye, off = th.eye(2), th.tensor([[1.0, 1.0]])
    own = model.riccati(eye, HORIZON)[0]
    p = th.diag(-own)
    p[0, 1] = p[1, 0] = 0.5 * (-model.riccati(off, HORIZON)[0] + own.sum())
    value = lambda state: -((state["obs"] @ p) * state["obs"]).sum(1)  # noqa: E731
    planned = plan(ILQR(ONE, horizon=HORIZON, iterations=3), model, STARTS, value=value)
    assert planned.sequence == pytest.approx(actions[:, :HORIZON], abs=1e-3)
    assert planned.value == pytest.approx(best, rel=1e-3)


def test_ilqr_where_rewards_bend_upwards():
    """Values used to grow from step to step until nothing was finite, and every second iteration was lost."""
    model = CartPoleSwingUpModel(device="cpu")
    hanging = th.tensor([[0.0, 0.0, -1.0, 0.0, 0.1], [0.0, 0.0, -1.0, 0.0, -0.1]])
    planned = plan(ILQR(ONE, horizon=30, iterations=10), model, hanging)
    assert (planned.value > 3.0).all()


def test_ilqr_in_a_model_that_knows_nothing():
    """Eigenvalues of what is not finite: an error that ended the training."""
    th.manual_seed(0)
    many, few = (spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,)))
    model = EnsembleModel(many, few, members=2, elites=2, hidden=[32, 32], device="cpu")
    model.fitted = True
    planned = plan(ILQR(few, horizon=25, iterations=4), model, th.randn(2, 17))
    assert planned.sequence.isfinite().all()
