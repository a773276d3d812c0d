"""The critics of DHMBPO: a stack is as its members alone; bounds; dropout; standardised observations."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.policies.value_gradient import ValueGradientPolicy, rare_dropout


def policy(**kwargs):
    spaces_ = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    return ValueGradientPolicy(*spaces_, lambda _: 1e-3, **{"net_arch": [8, 6], "dropout": 0.0, **kwargs})


def test_a_stack_computes_what_each_critic_would():
    critic = policy(n_critics=3).critic
    with th.no_grad():
        critic.layers[-1].weight.normal_()
    critic.set_bounds(-10.0, 30.0)
    obs, action = th.randn(5, 3), th.randn(5, 2)
    values = critic(obs, action)
    assert len(values) == 3
    for member, value in enumerate(values):
        rows = th.cat([obs, action], 1)
        for i, layer in enumerate(critic.layers):
            rows = rows @ layer.weight[member] + layer.bias[member]
            if i < 2:
                rows = F.layer_norm(F.silu(rows), rows.shape[-1:])
        assert th.allclose(value, 10.0 + 20.0 * rows, atol=1e-4)
    assert th.equal(critic.q1_forward(obs, action), values[0])


def test_values_begin_in_the_middle_of_the_bounds():
    critic = policy().critic
    critic.set_bounds(-4.0, 10.0)
    assert th.stack(critic(th.randn(5, 3), th.randn(5, 2))).unique().tolist() == [3.0]


def test_five_critics_of_three_layers_are_the_default():
    made = ValueGradientPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3)
    assert [tuple(layer.weight.shape) for layer in made.critic.layers] == [
        (5, 5, 256),
        (5, 256, 256),
        (5, 256, 256),
        (5, 256, 1),
    ]
    assert {id(p) for group in made.critic.optimizer.param_groups for p in group["params"]} == set(
        map(id, made.critic.parameters())
    )


def test_dropout_is_on_in_training_alone():
    critic = policy(dropout=0.5, net_arch=[64, 64]).critic
    with th.no_grad():
        critic.layers[-1].weight.normal_()
    obs, action = th.randn(5, 3), th.randn(5, 2)
    critic.set_training_mode(False)
    assert th.equal(critic(obs, action)[0], critic(obs, action)[0])
    critic.set_training_mode(True)
    assert not th.equal(critic(obs, action)[0], critic(obs, action)[0])


def test_actor_and_critics_see_standardised_observations():
    made = policy()
    rows = np.random.default_rng(0).normal(5.0, 3.0, (100, 3)).astype(np.float32)
    made.standardise(rows)
    for part in (made.actor, made.critic, made.critic_target):
        seen = part.features_extractor(th.as_tensor(rows))
        assert th.allclose(seen.mean(0), th.zeros(3), atol=1e-5)
        assert th.allclose(seen.std(0, correction=0), th.ones(3), atol=1e-4)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_observations_are_flattened(shape):
    made = ValueGradientPolicy(spaces.Box(-1, 1, shape), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, net_arch=[8])
    obs = np.zeros((4, *shape), np.float32)
    assert made.predict(obs)[0].shape == (4, 2)
    assert gym.spaces.Box(-1, 1, (2,)).contains(made.predict(obs)[0][0])


def test_rare_dropout_drops_the_share_it_should_and_keeps_the_mean():
    th.manual_seed(0)
    rows = th.ones(100, 1000, requires_grad=True)
    shares = []
    for _ in range(20):
        out = rare_dropout(rows, 0.01)
        assert out.unique().tolist() == pytest.approx([0.0, math.exp(0.01)])
        shares.append(float((out == 0).float().mean()))
    # Places are drawn with replacement: 1 - exp(-0.01) of them at least once. A share's deviation is 0.0003.
    assert sum(shares) / 20 == pytest.approx(1 - math.exp(-0.01), abs=3e-4)
    assert len(set(shares)) > 10, "their number is random"
    out.sum().backward()
    assert th.equal(rows.grad == 0, out == 0)
    assert set(rare_dropout(th.ones(1000), 0.5).tolist()) == {0.0, 2.0}
