"""Rows of a replay buffer as timesteps."""

from sb3_mbrl.timesteps import to_timesteps
from tests.buffers.filled import windows


def test_the_last_observation_of_an_episode_gets_a_row():
    rows, step = to_timesteps(windows([0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]))
    assert rows.obs[0, :, 0].tolist() == [0, 10, 11, 20, 30, 40]
    assert rows.is_first[0].tolist() == [True, False, False, True, False, False]
    assert rows.is_last[0].tolist() == [False, False, True, False, False, False]
    assert rows.terminated[0].tolist() == [0, 0, 1, 0, 0, 0]
    # What led there: the step before, and for the last observation its own.
    assert rows.action[0, :, 0].tolist() == [0, 0, 1, 0, 2, 3]
    assert rows.reward[0].tolist() == [0, 0, 1, 0, 2, 3]
    assert step[0].tolist() == [0, 1, 1, 2, 3, 4]


def test_a_time_limit_is_an_end_but_no_termination():
    rows, _ = to_timesteps(windows([0, 1, 0], [0, 0, 0]))
    assert rows.is_last[0].tolist() == [False, False, True]
    assert not rows.terminated.any()


def test_an_end_that_does_not_fit_in_is_left_out():
    rows, _ = to_timesteps(windows([1, 0, 1], [1, 0, 1]))
    assert rows.obs[0, :, 0].tolist() == [0, 1, 10]
    assert rows.terminated[0].tolist() == [0, 1, 0]
