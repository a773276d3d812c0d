"""Windows of real steps, and the latent states that are stored with them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import SideStore
from sb3_mbrl.buffers.sequences import SequenceReplay

OBS, ACTION = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,))


class AsTheyAre:
    """A stand-in for a latent model whose states need no packing."""

    state_layout = ("deter", 3)

    def pack(self, state):
        return state

    def unpack(self, packed):
        return packed


def filled(steps, length=9, size=64, n_envs=1, episode=7, timeouts=False, keep=True, online=False):
    """
    The observation at step ``t`` of environment ``e`` is ``(t, e)``, actions, rewards and states are ``t``; the last
    observation of an episode is ``(t + 0.5, e)``.
    """
    buffer = ReplayBuffer(size * n_envs, OBS, ACTION, "cpu", n_envs=n_envs)
    side, envs = SideStore(buffer), np.arange(n_envs)
    sampler = SequenceReplay(buffer, side, AsTheyAre(), length, online=online)
    for t in range(steps):
        done = (t + 1) % episode == 0
        obs = np.stack([np.full(n_envs, t), envs], 1)
        after = np.stack([np.full(n_envs, t + (0.5 if done else 1)), envs], 1)
        position = buffer.pos
        infos = [{"TimeLimit.truncated": done and timeouts}] * n_envs
        buffer.add(obs, after, np.full((n_envs, 1), t), np.full(n_envs, t), np.full(n_envs, done), infos)
        if keep:
            states = {"deter": th.full((n_envs, 3), float(t)), "stoch": th.full((n_envs, 2), t % 256, dtype=th.uint8)}
            for name, value in sampler.packed(states).items():
                side.put(name, position, value)
            sampler.added(position)
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
def test_windows_hold_what_happened(steps, n_envs, episode, timeouts, online, seed):
    sampler = filled(steps, n_envs=n_envs, episode=episode, timeouts=timeouts, online=online)
    batch = sampler.sample(16, generator=th.Generator().manual_seed(seed))
    rows, oldest = batch.rows, max(0, steps - 64)
    time, env = rows.obs[..., 0], rows.obs[..., 1]
    assert (env == th.as_tensor(batch.envs.copy())).all()
    assert (time >= oldest).all()
    assert (time < steps).all()
    # A last observation has a row of its own, and nothing else has its mark.
    assert th.equal(rows.is_last, time.frac() == 0.5)
    assert th.equal(rows.terminated, (rows.is_last & (not timeouts)).float())
    assert th.equal(rows.is_last, th.as_tensor(~batch.own))
    # Time advances by one step a row, or by the half step to a last observation and the half step to a new episode.
    gap = time[:, 1:] - time[:, :-1]
    assert th.equal(gap, th.where(rows.is_last[:, 1:] | rows.is_last[:, :-1], 0.5, 1.0))
    assert th.equal(rows.is_first[:, 1:], rows.is_last[:, :-1])
    # Action and reward are those of the step before.
    led = rows.is_first.logical_not()
    assert th.equal(rows.action[..., 0][led], (time - 0.5).floor()[led])
    assert th.equal(rows.reward[led], (time - 0.5).floor()[led])
    assert (rows.reward[rows.is_first] == 0).all()
    # The state of the step before the window: an episode that begins with the window has nothing to do with it.
    before = th.where(rows.is_last[:, 0], time[:, 0] - 0.5, time[:, 0] - 1)
    assert th.equal(batch.start["deter"][:, 0], before)
    assert th.equal(rows.is_first[:, 0], (time[:, 0] % episode == 0) & ~rows.is_last[:, 0])


def test_new_states_replace_the_stored_ones():
    sampler = filled(20, 6, episode=7)
    batch = sampler.sample(4, generator=th.Generator().manual_seed(0))
    new = {"deter": -(1 + batch.rows.obs[..., :1]).expand(-1, -1, 3), "stoch": th.zeros(4, 6, 2, dtype=th.uint8)}
    sampler.update(batch, new)
    deter = sampler.side.arrays["latent.deter"][:20, 0, 0]
    touched = np.unique(batch.steps[batch.own])
    np.testing.assert_array_equal(deter[touched], -(1.0 + touched))
    rest = np.setdiff1d(np.arange(20), touched)
    np.testing.assert_array_equal(deter[rest], rest)
    assert deter.dtype == np.float16


def test_sequences_of_steps_without_states_begin_with_an_unknown_state():
    batch = filled(20, 5, keep=False).sample(8)
    assert batch.start == {}
    assert batch.rows.is_first[:, 0].all()


def new_windows(batch, n):
    """Return the first observations of the first windows."""
    return batch.rows.obs[:n, 0].tolist()


def test_new_steps_come_first_and_once():
    """DreamerV3's online queue: 20 steps make two windows of 9, each of which is in one batch."""
    sampler = filled(20, n_envs=2, episode=100, online=True)
    generator = th.Generator().manual_seed(0)
    assert sampler._next_new(6, 9, 20) == [(0, 0), (0, 1), (8, 0), (8, 1)]
    assert sampler._next_new(6, 9, 20) == []
    again = filled(20, n_envs=2, episode=100, online=True)
    assert new_windows(again.sample(6, generator=generator), 4) == [[1, 0], [1, 1], [9, 0], [9, 1]]


def test_new_steps_of_many_environments_are_queued():
    """More environments than there are windows in a batch."""
    sampler = filled(20, n_envs=5, episode=100, online=True)
    batches = [new_windows(sampler.sample(4), 4) for _ in range(3)]
    assert [row for batch in batches for row in batch][:10] == [[1 + 8 * i, env] for i in range(2) for env in range(5)]


def test_new_steps_that_were_overwritten_are_dropped():
    """Not the oldest window over and over again."""
    sampler = filled(300, size=64, episode=1000, online=True)
    batch = sampler.sample(8, generator=th.Generator().manual_seed(0))
    assert len(set(batch.steps[:, 0].tolist())) > 4
    assert (batch.rows.obs[..., 0] >= 236).all()


def test_buffers_that_do_not_know_how_episodes_end():
    for kwargs, words in (
        ({"optimize_memory_usage": True, "handle_timeout_termination": False}, "keeps no last observations"),
        ({"handle_timeout_termination": False}, "cannot tell time limits from terminations"),
    ):
        buffer = ReplayBuffer(10, OBS, ACTION, "cpu", **kwargs)
        with pytest.raises(ValueError, match=words):
            SequenceReplay(buffer, SideStore(buffer), AsTheyAre(), 5)


def test_windows_are_uniform():
    sampler = filled(30, 4, episode=100)
    batch = sampler.sample(20_000, generator=th.Generator().manual_seed(0))
    counts = np.bincount(batch.steps[:, 0])
    assert counts[0] == 0, "the first step has none before it"
    np.testing.assert_allclose(counts[1:], 20_000 / 26, rtol=0.2)


def test_too_few_steps_for_a_window():
    assert filled(5, 4).enough()
    sampler = filled(5, 5)
    assert not sampler.enough()
    with pytest.raises(ValueError, match="Windows of 5 rows need 6 steps per environment, and the replay buffer holds 5"):
        sampler.sample(2)
