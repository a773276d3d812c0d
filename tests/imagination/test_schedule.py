"""The horizon against the tables of the MBPO paper (appendix C) and its rounding."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.imagination import BranchedRollouts, HorizonSchedule

K = 1000
HOPPER = HorizonSchedule.parse([20 * K, 150 * K, 1, 15])
ANT = HorizonSchedule.parse([20 * K, 100 * K, 1, 25])


@pytest.mark.parametrize(
    ("epoch", "horizon"),
    # int(1 + (epoch - 20) / 130 * 14), as mbpo.py:_set_rollout_length has it
    [(0, 1), (20, 1), (29, 1), (30, 2), (38, 2), (39, 3), (85, 8), (140, 13), (141, 14), (149, 14), (150, 15), (400, 15)],
)
def test_hopper_of_the_paper(epoch, horizon):
    assert HOPPER(epoch * K) == horizon
    assert min(15, max(1, int(1 + (epoch - 20) / 130 * 14))) == horizon


@pytest.mark.parametrize(("epoch", "horizon"), [(20, 1), (23, 1), (24, 2), (60, 13), (99, 24), (100, 25)])
def test_ant_of_the_paper(epoch, horizon):
    assert ANT(epoch * K) == horizon


def test_one_step_before_the_next_horizon():
    # 2 is reached at 20,000 + 130,000 / 14 = 29,285.7 steps.
    assert [HOPPER(29_285), HOPPER(29_286)] == [1, 2]
    assert [HOPPER(149_999), HOPPER(150_000), HOPPER(150_001)] == [14, 15, 15]


def test_floats_would_round_the_wrong_way():
    # 29 / 100 * 100 is 28.999999999999996.
    schedule = HorizonSchedule(0, 100, 1, 101)
    assert [schedule(step) for step in range(101)] == list(range(1, 102))


@given(
    start_step=st.integers(0, 10**6),
    span=st.integers(0, 10**6),
    start=st.integers(1, 50),
    end=st.integers(1, 50),
    step=st.integers(0, 3 * 10**6),
)
def test_it_is_the_rounded_line_between_its_ends(start_step, span, start, end, step):
    schedule = HorizonSchedule(start_step, start_step + span, start, end)
    done = min(max(Fraction(step - start_step, span) if span else Fraction(int(step > start_step)), 0), 1)
    assert schedule(step) == floor(start + done * (end - start))


def test_it_may_shrink():
    schedule = HorizonSchedule(0, 10, 3, 1)
    assert [schedule(step) for step in (0, 1, 5, 6, 10, 11)] == [3, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "given", [4, 4.0, np.int64(4), [0, 0, 4, 4], (0, 0, 4, 4), np.array([0, 0, 4, 4]), HorizonSchedule(0, 0, 4, 4)]
)
def test_ways_to_write_a_constant(given):
    schedule = BranchedRollouts(horizon=given).schedule
    assert schedule == HorizonSchedule(0, 0, 4, 4)
    assert {schedule(step) for step in (0, 1, 10**6)} == {4}


@pytest.mark.parametrize("given", ["5", None, True, 1.5, [1, 2, 3], [0, 1, 1, 2, 3], [0, 10, 1, 2.5], ["a", 1, 2, 3]])
def test_what_is_no_horizon_is_refused(given):
    with pytest.raises(ValueError, match=r"give a whole number, or four: \[start_step, end_step, start, end\]"):
        HorizonSchedule.parse(given)


@pytest.mark.parametrize("given", [0, -1, [0, 1, 0, 3], [0, 1, 3, 0], [5, 4, 1, 2]])
def test_impossible_horizons_are_refused(given):
    with pytest.raises(ValueError, match="horizons must be at least 1, and end_step not before start_step"):
        HorizonSchedule.parse(given)
