"""Priors and values for planners: parts of trained agents, and functions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_mbrl import PETS, model_based
from sb3_mbrl.models.analytic import CartPoleModel, PendulumModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners import CEM
from sb3_mbrl.planners.policy import PlannerPolicy
from sb3_mbrl.planners.priors import as_prior, as_value
from tests.planners.problems import OBS, SMALL, pendulum


def sac(env="Pendulum-v1"):
    return SAC("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, buffer_size=10)


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda state: state["theta"][:, None], r"the shape \({rows}, 1\)"),
        (lambda state: state["theta"].mean(), r"the shape \(\)"),
        (lambda state: state["theta"].numpy(), "ndarray"),
        (lambda state: state["theta"] > 0, "torch.bool"),
    ],
)
def test_a_value_is_one_number_per_state(value, got, n):
    """A single one used to be every plan's, so that all plans had the same value; a column failed within torch."""
    model = PendulumModel(device="cpu")
    rows = 8 * (n or 1)
    with pytest.raises(ValueError, match=rf"floats of the shape \({rows},\), one per state; got .*{got.format(rows=rows)}"):
        pendulum(model=Particles(model, n, "ts1") if n else model, value=value).predict(OBS)


@pytest.mark.parametrize(
    "action",
    [
        lambda state, generator: th.zeros(len(state["theta"])),
        lambda state, generator: th.zeros(len(state["theta"]), 1, dtype=th.int64),
    ],
)
def test_a_prior_is_one_action_per_state(action):
    with pytest.raises(ValueError, match=r"prior must return floats in \[-1, 1\] of the shape \(24, 1\), a row per state"):
        pendulum(prior=action).predict(OBS)


def test_parts_of_agents_that_are_not_meant():
    agent = sac()
    for wrong, words in (
        ({"prior": agent}, r"prior is an agent \(SAC\): give a part of it, prior=agent.policy"),
        ({"value": agent}, r"value is an agent \(SAC\): give a part of it, value=agent.critic"),
        ({"prior": agent.policy, "value": agent.policy}, "value is a SACPolicy, which is not a critic"),
        ({"prior": 3}, "prior=3: give a policy of SB3, or a function"),
        ({"value": 3}, "value=3: give a critic of SB3, or a function"),
    ):
        with pytest.raises(TypeError, match=words):
            pendulum(**wrong)


def test_parts_of_other_spaces():
    """Actions beyond their space used to be planned, and the rest failed within torch."""
    other = sac("MountainCarContinuous-v0")
    for wrong in ({"prior": other.policy}, {"prior": sac().policy, "value": other.critic}):
        with pytest.raises(ValueError, match=r"was made for the observation_space .* the world model's is"):
            pendulum(**wrong)
    three = CEM(spaces.Discrete(3), **SMALL)
    with pytest.raises(ValueError, match=r"built for the actions Discrete\(3\), and the world model's are Discrete\(2\)"):
        PlannerPolicy(three, CartPoleModel(device="cpu"))
    with pytest.raises(ValueError, match=r"built for the actions Discrete\(3\), and the world model's are Box"):
        PETS("MlpPolicy", "Pendulum-v1", device="cpu", planner=three)
    with pytest.raises(TypeError, match=r"planner='cem': give one of sb3_mbrl.planners"):
        PlannerPolicy("cem", CartPoleModel(device="cpu"))


@pytest.mark.parametrize("name", ["TQC", "CrossQ"])
def test_critics_of_sb3_contrib(name):
    """The mean over quantiles for TQC, the smallest of several critics. Both used to fail within torch."""
    contrib = pytest.importorskip("sb3_contrib")
    agent = model_based(getattr(contrib, name))(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, buffer_size=10
    )
    model = PendulumModel(device="cpu")
    value = as_value(agent.critic, agent.policy, model)
    state = model.initial(th.rand(4, 3))
    agent.policy.set_training_mode(False)
    with th.no_grad():
        action = as_prior(agent.policy, model, deterministic=True)(state)
        values = agent.critic(model.decode(state), action)
        by_hand = values.mean(-1).min(1).values if name == "TQC" else th.cat(values, 1).min(1).values
        th.testing.assert_close(value(state), by_hand)


def test_the_network_of_qrdqn():
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.QRDQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=10)
    model = CartPoleModel(device="cpu")
    state = model.initial(th.rand(4, 4) * 0.1)
    by_hand = agent.quantile_net(model.decode(state)).mean(1).max(1).values
    th.testing.assert_close(as_value(agent.quantile_net, None, model)(state), by_hand)
    policy = PlannerPolicy(CEM(agent.action_space, **SMALL), model, agent.policy, agent.quantile_net)
    assert agent.action_space.contains(int(policy.predict(np.zeros(4, np.float32))[0]))
    with pytest.raises(TypeError, match=r"prior is a QuantileNetwork: give the policy"):
        as_prior(agent.quantile_net, model)
