"""Value targets against a recursion by hand, for every start, player and ending."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.algorithms.muzero import targets
from sb3_mbrl.algorithms.muzero.targets import Steps


def by_recursion(rewards, discounts, cuts, explored, values, k, n):
    """``z = r + d z'`` until ``n`` rewards are summed, the episode ends or nothing more is known; then the value."""
    if k < len(explored) and explored[k]:
        return 50.0 + k  # the value of its own search
    if n == 0:
        return values[k - 1]  # of the state after the last step
    z = (
        by_recursion(rewards, discounts, cuts, explored, values, k + 1, n - 1)
        if discounts[k] and not cuts[k] and k + 1 < len(rewards)
        else None
    )
    if z is None:
        z = values[k] if discounts[k] else 0.0
    return rewards[k] + discounts[k] * z


@st.composite
def windows(draw):
    width = draw(st.integers(1, 8))
    numbers = st.floats(-3, 3, width=32)
    rewards = [draw(numbers) for _ in range(width)]
    discounts = [draw(st.sampled_from([0.9, 0.9, 0.9, -0.9, 0.0])) for _ in range(width)]
    cuts = [draw(st.sampled_from([False, False, False, True])) for _ in range(width)]
    explored = [draw(st.sampled_from([False, False, False, True])) for _ in range(width)]
    values = [draw(numbers) for _ in range(width)]
    return rewards, discounts, cuts, explored, values, draw(st.integers(1, width)), draw(st.integers(1, 9))


@given(windows())
def test_targets_are_those_of_the_recursion(case):
    rewards, discounts, cuts, explored, values, states, n = case
    steps = Steps(*(np.array([column]) for column in (rewards, discounts, cuts, explored)))
    last = targets.last_steps(steps, states, n)
    # The next state's own search before a random action, if it is a state of the same episode.
    searched = np.append(explored, False)[last + 1] & ((last < np.arange(states)) | ~np.array(cuts)[np.maximum(last, 0)])
    bootstrap = np.where(searched, 50.0 + last + 1, np.array([values])[np.zeros_like(last), np.maximum(last, 0)])
    z = targets.value_targets(steps, last, bootstrap)[0]
    living, gone = targets.alive(steps, states)[0], targets.absorbed(steps, states)[0]
    ended, terminated = False, False
    for k in range(states):
        assert living[k] == (not ended)
        assert gone[k] == terminated
        expected = 0.0 if ended else by_recursion(rewards, discounts, cuts, explored, values, k, n)
        assert z[k] == pytest.approx(expected, abs=1e-5)
        if not ended and (discounts[k] == 0 or cuts[k]):
            ended, terminated = True, discounts[k] == 0 and not cuts[k]


def test_the_value_of_a_random_action_is_what_came_of_it():
    """Else afterstates of actions that the search would not choose learn the value of those that it would."""
    reward, explored = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([[False, True, False, True]])
    steps = Steps(reward, np.full((1, 4), 0.5), np.zeros((1, 4), bool), explored)
    last = targets.last_steps(steps, 4, 9, of_actions=True)
    assert last.tolist() == [[0, 2, 2, 3]], "sums stop before the next random action, not before their own"
    values = np.array([[10.0, 20.0, 30.0, 40.0]])  # after each last step
    bootstrap = values[[[0]], last]
    assert targets.value_targets(steps, last, bootstrap).tolist() == [
        [1 + 0.5 * 10, 2 + 0.5 * (4 + 0.5 * 30), 4 + 0.5 * 30, 8 + 0.5 * 40]
    ]
    assert targets.last_steps(steps, 4, 9).tolist() == [[0, 0, 2, 2]]
    assert targets.last_steps(steps, 4, 1, of_actions=True).tolist() == [[0, 1, 2, 3]]


def test_a_game_that_the_first_player_wins_on_the_fifth_move():
    """Rewards are those of who moves: +1 for the winning move, so -1 for the move before. (LightZero has wrong signs here.)"""
    steps = Steps(np.array([[0.0, 0, 0, 0, 1]]), np.array([[-1.0, -1, -1, -1, 0]]), *np.zeros((2, 1, 5), bool))
    last = targets.last_steps(steps, 5, 9)
    assert targets.value_targets(steps, last, np.full((1, 5), 7.0)).tolist() == [[1, -1, 1, -1, 1]]


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    """Nobody else's targets do."""
    reward, cut = np.ones((1, 2)), np.array([[False, True]])
    running = Steps(reward, np.full((1, 2), 0.5), cut, ~cut & False)
    last = targets.last_steps(running, 2, 5)
    assert targets.value_targets(running, last, np.full((1, 2), 8.0)).tolist() == [[1 + 0.5 * (1 + 0.5 * 8), 1 + 0.5 * 8]]
    over = Steps(reward, np.array([[0.5, 0.0]]), *np.zeros((2, 1, 2), bool))
    assert targets.value_targets(over, last, np.full((1, 2), 8.0)).tolist() == [[1.5, 1]]
