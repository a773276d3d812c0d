"""Known functions of Gymnasium's classic control."""

import numpy as np
import pytest
import torch as th

from tests.envs.functions import check, collect, functions_of, make


def test_mountain_cars_reach_the_flag():
    """Random actions never do: push along the velocity."""
    env = make("MountainCar-v0")
    rows = collect(env, 200, lambda obs: 2 if obs[1] >= 0 else 0)
    assert rows["terminated"].any()
    check(functions_of("MountainCar-v0", env), rows)
    env = make("MountainCarContinuous-v0")
    rows = collect(
        env, 200, lambda obs: np.array([1.5 if obs[1] >= 0 else -1.0], np.float32)
    )  # the cost is of the unclipped action
    assert rows["terminated"].any()
    check(functions_of("MountainCarContinuous-v0", env), rows)


def test_acrobot_reaches_the_line():
    env = make("Acrobot-v1")
    rows = collect(env, 400, lambda obs: 2 if obs[4] <= 0 else 0)
    assert rows["terminated"].any()
    check(functions_of("Acrobot-v1", env), rows)


def test_rewards_are_differentiable():
    """Planners and policies may follow the gradient: d(-0.001 u^2)/du = -0.002 u."""
    reward = functions_of("Pendulum-v1", make("Pendulum-v1")).reward_fn
    assert reward is not None
    obs, action = th.tensor([[1.0, 0.0, 0.5]], requires_grad=True), th.tensor([[1.5]], requires_grad=True)
    reward(obs, action, obs.detach()).sum().backward()
    assert action.grad.item() == pytest.approx(-0.003)
    assert obs.grad[0].tolist() == pytest.approx([0.0, 0.0, -0.1])
