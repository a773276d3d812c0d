import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler
from sb3_mbrl.contracts import Imagined
from tests.buffers.test_replay_data import ACT, OBS, filled


def rollout(first: int, rows: int, *, horizon: int = 1, valid=None, discount=None) -> Imagined:
    """Rows that count from ``first``."""
    reward = th.arange(first, first + horizon * rows, dtype=th.float32).view(horizon, rows)
    mask = th.ones(horizon, rows, dtype=th.bool) if valid is None else valid
    given = None if discount is None else th.full((horizon, rows), discount)
    obs = reward[..., None]
    return Imagined(obs, th.zeros(horizon, rows, 1), obs + 1, reward, th.zeros(horizon, rows), given, mask)


def stored(buffer: ImaginedBuffer) -> list[int]:
    return sorted({int(value) for value in buffer.draw(5000, th.Generator().manual_seed(0))["reward"]}) if len(buffer) else []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from(["add", "age", "resize"]), st.integers(1, 15)), max_size=12))
def test_it_holds_the_newest_rows_that_are_young_enough(capacity, actions):
    """Against the obvious model: a list of (value, birth)."""
    buffer, expected, counter = ImaginedBuffer(capacity), [], 0
    for clock, (action, number) in enumerate(actions, start=1):
        if action == "add":
            buffer.extend(rollout(counter, number), clock)
            expected = [*expected, *((value, clock) for value in range(counter, counter + number))]
            counter += number
        elif action == "age":
            buffer.forget_before(clock - number)
            expected = [row for row in expected if row[1] >= clock - number]
        else:
            buffer.resize(number)
            capacity = number
        expected = expected[-capacity:]
        assert len(buffer) == len(expected)
        assert stored(buffer) == [value for value, _ in expected]


def test_masked_rows_are_not_stored():
    buffer = ImaginedBuffer(10)
    valid = th.tensor([[True, False, True], [False, False, True]])
    assert buffer.extend(rollout(0, 3, horizon=2, valid=valid), 0) == 3
    assert stored(buffer) == [0, 2, 5]


def test_an_empty_buffer_cannot_be_sampled():
    with pytest.raises(ValueError, match="empty"):
        ImaginedBuffer(4).draw(1)


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
