"""Regression: PETS on the swing-up never learned the reward of standing up."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.ensemble import EnsembleModel

OBS, ACTION = spaces.Box(-4, 4, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)


def seldom_good(rows: int) -> ReplayBuffer:
    """Points on a circle move along it; the reward at the top is up to 1, and one row in forty is near it."""
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(rows, OBS, ACTION, device="cpu")
    for _ in range(rows):
        low, high = (0.6, 2 * np.pi - 0.6) if rng.random() > 0.05 else (-0.6, 0.6)
        angle, action = rng.uniform(low, high), rng.uniform(-1, 1)
        after = angle + 0.1 * action
        obs, next_obs = (np.array([np.cos(a), np.sin(a)], np.float32) for a in (angle, after))
        reward = np.exp(-20 * (1 - np.cos(after)))
        buffer.add(obs[None], next_obs[None], np.array([[action]]), np.array([reward]), np.array([False]), [{}])
    return buffer


@pytest.mark.parametrize(("nll_beta", "learned"), [(0.5, True), (0.0, False)])
def test_rewards_that_are_rare_are_learned(nll_beta, learned):
    """By likelihood alone such rewards count as noise."""
    data = ReplayData(seldom_good(800))
    model = EnsembleModel(OBS, ACTION, members=2, elites=2, hidden=[64, 64], nll_beta=nll_beta, device="cpu")
    model.fit(data, FitBudget(max_batches=3000), generator=th.Generator().manual_seed(0))
    rows = data.transitions()
    with th.no_grad():
        predicted = model.step(model.initial(rows.obs), rows.action, deterministic=True).reward
    good = rows.reward > 0.5
    error = float((predicted - rows.reward)[good].square().mean().sqrt())
    assert (error < 0.1) is learned
