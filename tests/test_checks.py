"""Checks of numbers and names that users give."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.checks import did_you_mean, number, whole


@given(value=st.integers(-5, 50), low=st.integers(-5, 20))
def test_whole_numbers_pass_from_the_lowest_on(value, low):
    if value >= low:
        assert whole("n", value, low) == value
        assert whole("n", float(value), low) == value
    else:
        with pytest.raises(ValueError, match=rf"^n={value}: give a whole number from {low} on$"):
            whole("n", value, low)


@pytest.mark.parametrize(("value", "expected"), [(1e3, 1000), (np.int64(7), 7), (np.float32(2.0), 2)])
def test_whole_returns_plain_integers(value, expected):
    assert whole("n", value, 1) == expected
    assert type(whole("n", value, 1)) is int


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, "3", None, True, [1], 1 + 0j])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^horizon=.*: give a whole number from 0 on$"):
        whole("horizon", value, 0)


@given(st.floats(-10, 10), st.floats(-5, 0), st.floats(0, 5))
def test_numbers_pass_within_their_limits(value, low, high):
    if low <= value <= high:
        assert number("x", value, low, high) == value
        assert type(number("x", value, low, high)) is float
    else:
        with pytest.raises(ValueError, match=r"^x="):
            number("x", value, low, high)


def test_an_open_limit_is_not_allowed_itself():
    assert number("std", 0, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"^std=0: give a number above 0 up to 10$"):
        number("std", 0, 0.0, 10.0, open_low=True)
    assert number("std", 1e-300, 0.0, 10.0, open_low=True) == 1e-300


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", None, False, np.ones(1)])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^gamma=.*: give a number from 0$"):
        number("gamma", value, 0.0)


def test_a_similar_name_is_suggested():
    assert did_you_mean("gradiant", ["cem", "gradient", "grid"]) == " Did you mean 'gradient'?"
    assert did_you_mean("mppi", iter(["cem", "mpi"])) == " Did you mean 'mpi'?"
    assert did_you_mean("xyz", ["cem", "gradient"]) == ""
    assert did_you_mean("x", []) == ""
