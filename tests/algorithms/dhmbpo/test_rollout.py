"""Soft returns against a loop, expected ends, and the bounds of values."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_mbrl.algorithms.dhmbpo.rollout import TrainingRollout, ValueBounds, frozen


def by_loop(rewards, log_probs, ends, last_value, alpha, gamma, first_entropy):
    """The target of the paper, one rollout, term by term."""
    total, alive, discount = 0.0, 1.0, 1.0
    for t, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        entropy = 0.0 if t == 0 and not first_entropy else -alpha * log_probs[t]
        total += discount * alive * (reward + entropy)
        alive, discount = alive * (1 - end), discount * gamma
    entropy = 0.0 if not rewards and not first_entropy else -alpha * log_probs[-1]
    return total + discount * alive * (last_value + entropy)


@pytest.mark.parametrize("horizon", [0, 1, 5])
@pytest.mark.parametrize("first_entropy", [True, False])
def test_returns_are_those_of_a_loop(horizon, first_entropy):
    rng = np.random.default_rng(horizon)
    rewards, ends = rng.normal(size=(horizon, 4)), rng.choice([0.0, 0.3, 1.0], size=(horizon, 4))
    log_probs, last_value = rng.normal(size=(horizon + 1, 4)), rng.normal(size=4)
    weights = np.cumprod(np.concatenate([np.ones((1, 4)), 0.9 * (1 - ends)]), axis=0)
    tensors = [th.as_tensor(part) for part in (rewards, log_probs, weights)]
    rollout = TrainingRollout(None, None, *tensors, None, None)
    found = rollout.returns(th.tensor(0.2), th.as_tensor(last_value), first_entropy=first_entropy)
    for row in range(4):
        columns = [list(part[:, row]) for part in (rewards, log_probs, ends)]
        expected = by_loop(*columns, last_value[row], 0.2, 0.9, first_entropy)
        assert float(found[row]) == pytest.approx(expected)


def test_nothing_counts_behind_a_certain_end():
    weights = th.tensor([[1.0], [0.0], [0.0]])
    rollout = TrainingRollout(None, None, th.tensor([[2.0], [50.0]]), th.zeros(3, 1), weights, None, None)
    assert float(rollout.returns(th.tensor(1.0), th.tensor([900.0]), first_entropy=True)) == 2.0


def test_bounds_are_quantiles_over_one_minus_gamma():
    bounds = ValueBounds(0.9, 0.1)
    rewards = th.arange(101.0)  # 1 % quantile 1, 99 % quantile 99
    bounds.move(rewards)
    assert (bounds.low, bounds.high) == pytest.approx((10.0, 990.0), rel=1e-4)
    bounds.move(rewards * 0 + 3.0)  # a tenth of the way to 30
    assert (bounds.low, bounds.high) == pytest.approx((12.0, 894.0), rel=1e-4)
    bounds.episodes_end = True
    bounds.move(rewards + 100.0)  # 0 is a value where episodes end
    assert bounds.low == pytest.approx(12.0 * 0.9, rel=1e-4)
    other = ValueBounds(0.9, 0.1)
    other.load_state_dict(bounds.state_dict())
    assert (other.low, other.high, other.known, other.episodes_end) == (bounds.low, bounds.high, True, True)


def test_frozen_parameters_pass_gradients_on_and_take_none():
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    x = th.ones(1, 2, requires_grad=True)
    with frozen(network):
        network(x).backward()
    assert x.grad is not None
    assert network.weight.grad is None
    assert network.weight.requires_grad
    assert not network.bias.requires_grad, "what was frozen before stays frozen"
