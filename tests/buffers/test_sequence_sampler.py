"""Windows of real steps, with what is stored beside them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers.sequence_sampler import SequenceSampler

OBS, ACTION = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,))


def filled(steps, size=64, n_envs=1, episode=7, timeouts=False, keep=True, online=False):
    """
    The observation at step ``t`` of environment ``e`` is ``(t, e)``, actions, rewards and states are ``t``; the last
    observation of an episode is ``(t + 0.5, e)``.
    """
    buffer = ReplayBuffer(size * n_envs, OBS, ACTION, "cpu", n_envs=n_envs)
    sampler, envs = SequenceSampler(buffer, online=online), np.arange(n_envs)
    for t in range(steps):
        done = (t + 1) % episode == 0
        obs = np.stack([np.full(n_envs, t), envs], 1)
        after = np.stack([np.full(n_envs, t + (0.5 if done else 1)), envs], 1)
        position = buffer.pos
        infos = [{"TimeLimit.truncated": done and timeouts}] * n_envs
        buffer.add(obs, after, np.full((n_envs, 1), t), np.full(n_envs, t), np.full(n_envs, done), infos)
        if keep:
            sampler.keep(position, {"deter": th.full((n_envs, 3), float(t)), "stoch": th.full((n_envs, 2), t, dtype=th.uint8)})
    return sampler


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(20, 150),
    n_envs=st.integers(1, 3),
    episode=st.integers(1, 12),
    timeouts=st.booleans(),
    online=st.booleans(),
    seed=st.integers(0, 9),
)
def test_windows_are_what_happened(steps, n_envs, episode, timeouts, online, seed):
    sampler = filled(steps, n_envs=n_envs, episode=episode, timeouts=timeouts, online=online)
    found = sampler.sample(16, 9, generator=th.Generator().manual_seed(seed))
    rows, oldest = found.rows, max(0, steps - 64)
    time, env = rows.obs[..., 0], rows.obs[..., 1]
    assert (env == th.as_tensor(found.envs.copy())).all()
    assert (time >= oldest).all()
    assert (time < steps).all()
    # A last observation has a row of its own, and nothing else has its mark.
    assert th.equal(rows.is_last, time.frac() == 0.5)
    assert th.equal(rows.terminated, (rows.is_last & (not timeouts)).float())
    assert th.equal(rows.is_last, th.as_tensor(~found.own))
    # Time goes on by one step a row, or by the half step to a last observation and the half step to a new episode.
    gap = time[:, 1:] - time[:, :-1]
    assert th.equal(gap, th.where(rows.is_last[:, 1:] | rows.is_last[:, :-1], 0.5, 1.0))
    assert th.equal(rows.is_first[:, 1:], rows.is_last[:, :-1])
    # What led there: the step before.
    led = rows.is_first.logical_not()
    assert th.equal(rows.action[..., 0][led], (time - 0.5).floor()[led])
    assert th.equal(rows.reward[led], (time - 0.5).floor()[led])
    assert (rows.reward[rows.is_first] == 0).all()
    # The state of the step before the window: an episode that begins with the window has nothing to do with it.
    before = th.where(rows.is_last[:, 0], time[:, 0] - 0.5, time[:, 0] - 1)
    assert th.equal(found.start["deter"][:, 0], before)
    assert th.equal(rows.is_first[:, 0], (time[:, 0] % episode == 0) & ~rows.is_last[:, 0])


def test_states_that_were_computed_anew_replace_the_stored_ones():
    sampler = filled(20, episode=7)
    found = sampler.sample(4, 6, generator=th.Generator().manual_seed(0))
    new = {"deter": -(1 + found.rows.obs[..., :1]).expand(-1, -1, 3), "stoch": th.zeros(4, 6, 2, dtype=th.uint8)}
    sampler.update(found, new)
    deter = sampler.side.arrays["deter"][:20, 0, 0]
    touched = np.unique(found.steps[found.own])
    np.testing.assert_array_equal(deter[touched], -(1.0 + touched))
    rest = np.setdiff1d(np.arange(20), touched)
    np.testing.assert_array_equal(deter[rest], rest)
    assert deter.dtype == np.float16


def test_steps_without_states_begin_anew():
    found = filled(20, keep=False).sample(8, 5)
    assert found.start == {}
    assert found.rows.is_first[:, 0].all()


def test_new_steps_come_first_and_once():
    """DreamerV3's online queue: 20 steps make two windows of 9, each of which is in one batch."""
    sampler = filled(20, n_envs=2, episode=100, online=True)
    generator = th.Generator().manual_seed(0)
    found = sampler.sample(6, 9, generator=generator)
    assert found.rows.obs[:4, 0].tolist() == [[1, 0], [1, 1], [9, 0], [9, 1]]
    assert sampler.fresh == 2
    sampler.sample(6, 9, generator=generator)
    assert sampler.fresh == 2


def test_windows_are_uniform():
    sampler = filled(30, episode=100)
    found = sampler.sample(20_000, 4, generator=th.Generator().manual_seed(0))
    counts = np.bincount(found.steps[:, 0])
    assert counts[0] == 0, "the first step has none before it"
    np.testing.assert_allclose(counts[1:], 20_000 / 26, rtol=0.2)


def test_too_few_steps_for_a_window():
    sampler = filled(5)
    assert sampler.enough(4)
    assert not sampler.enough(5)
    with pytest.raises(ValueError, match="Windows of 5 rows need 6 steps per environment, and the replay buffer holds 5"):
        sampler.sample(2, 5)
