"""
Training data from SB3's own buffers. Observations count time, so that every row says where it belongs: obs = 100 * env + t.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_mbrl.agent.real_steps import cut_off_episodes
from sb3_mbrl.buffers import ReplayData, RowCount, SideStore
from tests.buffers.filled import ACT, OBS, filled


def test_a_time_limit_is_not_a_termination():
    rows = ReplayData(filled(28)).transitions()
    assert rows.terminated.nonzero().flatten().tolist() == [6, 20]  # the episodes ending at 13 and 27 ran out of time


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [10, 50, 73])
@pytest.mark.parametrize("memory", [False, True])
def test_no_row_pairs_an_observation_with_another_episode(n_envs, steps, memory):
    """
    SB3 issue 934: with optimize_memory_usage the successor of an episode's last row is the next episode's first observation.
    """
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False} if memory else {}
    data = ReplayData(filled(steps, n_envs=n_envs, **kwargs))
    rows = data.transitions()
    assert th.equal(rows.next_obs, rows.obs + 1)
    assert len(rows.reward) == len(data) == len(data.row_ids())
    kept = min(steps, 50) * n_envs
    if memory:
        # without the episodes' last rows, and without the one that the write head has overwritten
        assert kept - (kept // 7 + 2) * n_envs <= len(data) < kept
    else:
        assert len(data) == kept


def test_rows_come_oldest_first_and_keep_their_ids():
    buffer = filled(60)
    data = ReplayData(buffer)
    assert (data.transitions().reward.diff() > 0).all()
    before = dict(zip(data.row_ids().tolist(), data.transitions().reward.tolist(), strict=True))
    buffer.add(np.array([[9999.0]]), np.array([[10000.0]]), np.zeros((1, 1)), np.array([9999.0]), np.array([False]), [{}])
    after = dict(zip(data.row_ids().tolist(), data.transitions().reward.tolist(), strict=True))
    assert sum(before[key] != after[key] for key in before) == 1


def test_n_step_buffers_give_single_steps():
    rows = ReplayData(filled(28, cls=NStepReplayBuffer, n_steps=3)).transitions()
    assert th.equal(rows.next_obs, rows.obs + 1)
    assert th.equal(rows.reward, rows.obs[:, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 120), st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000))
def test_windows_are_consecutive_and_say_where_episodes_begin(steps, n_envs, length, seed):
    data = ReplayData(filled(steps, n_envs=n_envs))
    windows = data.sequences(20, length, generator=th.Generator().manual_seed(seed))
    obs = windows.obs[..., 0]
    jump = obs[:, 1:] - obs[:, :-1]
    assert windows.is_first[:, 0].all()
    assert th.equal(windows.is_first[:, 1:], jump == 11)
    assert th.equal(windows.is_last[:, :-1], jump == 11)
    assert ((jump == 1) | (jump == 11)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 120), st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000))
def test_contexts_never_look_into_another_episode(steps, n_envs, length, seed):
    data = ReplayData(filled(steps, n_envs=n_envs))
    context = data.contexts(20, length, generator=th.Generator().manual_seed(seed))
    obs = context.obs[..., 0]
    # From the last true is_first on, time runs in single steps; before, the first observation is repeated.
    for row, first in zip(obs, context.is_first, strict=True):
        begin = int(first.nonzero().max())
        assert (row[begin:].diff() == 1).all()
        assert (row[: begin + 1] == row[begin]).all()
        assert first[:begin].all()


def test_newest_windows_lie_in_one_episode_and_among_the_newest_rows(generator):
    data = ReplayData(filled(60, n_envs=2))
    windows = data.newest(1000, 4, within=20, generator=generator)
    assert windows is not None
    assert (windows.obs[..., 0].diff(dim=1) == 1).all()
    # Every such window once: 20 rows hold 17 windows, of which those across the episode ends at rows 42, 49 and 56 are out.
    assert len(windows.reward) == 2 * (17 - 2 * 3 - 2)
    assert data.newest(10, 21, within=20, generator=generator) is None


def test_the_oldest_row_is_no_start_state_when_it_has_been_overwritten():
    buffer = filled(70, optimize_memory_usage=True, handle_timeout_termination=False)
    rows, _ = ReplayData(buffer).draw(2000, th.Generator().manual_seed(0))
    assert buffer.pos not in rows


def test_dict_buffers_and_float64():
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float64), b=spaces.Discrete(4))
    buffer = DictReplayBuffer(10, space, ACT)
    obs = {"a": np.array([[0.25, 0.5]]), "b": np.array([[3]])}
    buffer.add(obs, obs, np.zeros((1, 1)), np.array([1.0]), np.array([True]), [{}])
    rows = ReplayData(buffer).transitions()
    assert rows.obs["a"].dtype == th.float32
    assert rows.obs["b"].tolist() == [[3]]
    assert rows.terminated.tolist() == [1.0]


def test_an_empty_buffer_says_what_to_do():
    buffer = ReplayBuffer(10, OBS, ACT)
    with pytest.raises(ValueError, match=r"no usable transition: collect some with learn\(\)"):
        ReplayData(buffer).transitions()
    with pytest.raises(ValueError, match="Windows of 4 steps were asked for, but the replay buffer holds 0"):
        ReplayData(buffer).sequences(1, 4)


def test_nan_in_the_buffer_is_named():
    buffer = filled(10, n_envs=2)
    buffer.next_observations[4, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in next_obs at row 4, environment 1"):
        ReplayData(buffer).transitions()


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [10, 50, 73])
@pytest.mark.parametrize("memory", [False, True])
def test_episode_starts_are_rows_after_a_reset(n_envs, steps, memory):
    """Time jumps at a reset; the oldest row of a full buffer may lie in the middle of its episode and does not count."""
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False} if memory else {}
    data = ReplayData(filled(steps, n_envs=n_envs, **kwargs))
    ids, rows = data.row_ids(), data.transitions()
    time = (rows.obs[:, 0] % 1000).long()
    first = th.tensor([t % 17 == 0 for t in time.tolist()])  # seven steps and a jump of ten
    if data.buffer.full:
        first &= time > time.min()
    assert data.episode_starts().tolist() == ids[first].tolist()
    assert len(data.episode_starts()) > 0
    envs = data.places(data.episode_starts())[1]
    assert set(envs) == set(range(n_envs))


def test_windows_know_where_they_are_stored_and_what_is_stored_beside_them():
    buffer = ReplayBuffer(20, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), device="cpu", n_envs=2)
    side = SideStore(buffer)
    for t in range(7):
        side.put("weight", buffer.pos, np.array([10.0 * t, 10.0 * t + 1]))
        obs = np.full((2, 1), t / 10)
        buffer.add(obs, obs, obs, np.zeros(2), np.zeros(2), [{}, {}])
    data = ReplayData(buffer, side)
    for windows in (data.sequences(30, 3, extra=("weight",)), data.contexts(30, 3, extra=("weight",))):
        t, env = windows.ids // 2, windows.ids % 2
        np.testing.assert_allclose(windows.obs[..., 0], t / 10)
        np.testing.assert_allclose(windows.extra["weight"], 10 * t + env)
    assert not data.sequences(3, 3).extra
    with pytest.raises(ValueError, match="has no 'priority' stored with some of its rows"):
        data.sequences(3, 3, extra=("priority",))
    with pytest.raises(ValueError, match="has no side store"):
        ReplayData(buffer).sequences(3, 3, extra=("weight",))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 3), st.lists(st.tuples(st.integers(0, 70), st.booleans()), max_size=8), st.booleans()
)
def test_rows_are_counted_as_they_are_added(before, n_envs, steps, memory):
    """The count was taken anew at every step, over the whole buffer."""
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False} if memory else {}
    buffer = filled(before, n_envs=n_envs, **kwargs)
    count, rng, ones = RowCount(buffer), np.random.default_rng(0), np.ones((n_envs, 1))
    for more, cut in steps:
        for _ in range(more % 50):  # at most once around between two counts
            buffer.add(ones, ones, ones, ones[:, 0], rng.random(n_envs) < 0.3, [{} for _ in range(n_envs)])
        if cut:
            cut_off_episodes(buffer)
        assert count() == len(ReplayData(buffer))
