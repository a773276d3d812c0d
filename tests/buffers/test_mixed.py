"""Batches of real and imagined rows."""

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler
from tests.buffers.filled import ACT, OBS, filled, rollout


@pytest.mark.parametrize(("ratio", "real"), [(0.05, 12), (0.5, 128), (0.0, 0), (1.0, 256)])
def test_every_batch_holds_its_share_of_real_rows(ratio, real):
    """The paper's int(256 * 0.05) = 12 real rows in every batch; mbrl-lib flips a coin for whole batches."""
    imagined = ImaginedBuffer(100)
    imagined.extend(rollout(100_000, 50), 0)
    batch = MixedSampler(filled(28), imagined, ratio, 0.99).sample(256)
    assert batch.rewards.shape == (256, 1)
    assert int((batch.rewards < 100_000).sum()) == real
    assert th.equal(batch.next_observations, batch.observations + 1)


def test_imagined_rows_carry_gamma_beside_n_step_returns():
    real = filled(28, cls=NStepReplayBuffer, n_steps=3, gamma=0.9)
    imagined = ImaginedBuffer(100)
    imagined.extend(rollout(100_000, 50), 0)
    batch = MixedSampler(real, imagined, 0.5, 0.9).sample(64)
    th.testing.assert_close(batch.discounts[32:], th.full((32, 1), 0.9))
    assert (batch.discounts[:32] < 0.9).any()


def test_a_models_own_discount_replaces_gamma_and_done():
    imagined = ImaginedBuffer(100)
    imagined.extend(rollout(100_000, 50, discount=-0.9), 0)
    batch = MixedSampler(filled(28), imagined, 0.5, 0.99).sample(8)
    th.testing.assert_close(batch.discounts, th.tensor([0.99] * 4 + [-0.9] * 4)[:, None])
    assert not batch.dones[4:].any()


def test_float64_spaces_meet_imagined_rows_in_float32():
    space = spaces.Box(-1, 1, (1,), dtype="float64")
    real = ReplayBuffer(10, space, ACT)
    import numpy as np

    real.add(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    imagined = ImaginedBuffer(4)
    imagined.extend(rollout(0, 4), 0)
    assert MixedSampler(real, imagined, 0.5, 0.99).sample(4).observations.dtype == th.float32


def test_everything_else_is_the_real_buffers():
    real = filled(10)
    sampler = MixedSampler(real, ImaginedBuffer(1), 0.5, 0.99)
    assert sampler.observation_space is OBS
    assert sampler.size() == 10
