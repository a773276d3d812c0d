"""Drawing rows in proportion to their priorities."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl.buffers.priorities import Priorities


def test_frequencies_and_weights_are_those_of_the_formula():
    rows = Priorities((5, 1), alpha=0.5, beta=0.7)
    rows.values[:4, 0] = [1, 4, 9, 16]
    places, envs, weights = rows.draw(np.arange(4), 20_000, th.Generator().manual_seed(0))
    assert set(envs) == {0}
    chances = np.array([1, 2, 3, 4]) / 10
    assert np.bincount(places) / 20_000 == pytest.approx(chances, abs=0.01)
    expected = (4 * chances) ** -0.7
    assert weights == pytest.approx((expected / expected.max())[places])


def test_new_rows_have_the_largest_priority():
    rows = Priorities((5, 2), alpha=1.0, beta=1.0)
    rows.added(0)
    rows.update(np.array([0]), np.array([1]), np.array([7.0]))
    rows.added(1)
    assert rows.values[1] == pytest.approx([7.0, 7.0])
    assert rows.values[0, 0] == 1.0


def test_without_alpha_rows_are_drawn_uniformly():
    rows = Priorities((4, 2), alpha=0.0, beta=1.0)
    places, envs, weights = rows.draw(np.array([2, 3]), 8000, th.Generator().manual_seed(0))
    assert np.bincount(places * 2 + envs) / 8000 == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert (weights == 1).all()


def test_a_row_of_priority_zero_is_not_lost():
    rows = Priorities((2, 1), alpha=1.0, beta=1.0)
    rows.update(np.array([0, 1]), np.zeros(2, int), np.array([0.0, 0.0]))
    assert (rows.values > 0).all()


def test_state_is_restored():
    rows = Priorities((3, 1), alpha=1.0, beta=1.0)
    rows.update(np.array([2]), np.array([0]), np.array([5.0]))
    other = Priorities((3, 1), alpha=1.0, beta=1.0)
    other.load_state_dict(rows.state_dict())
    assert (other.values == rows.values).all()
    assert other.largest == rows.largest
