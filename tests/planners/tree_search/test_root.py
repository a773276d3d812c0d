"""Sequential halving and Dirichlet noise."""

import numpy as np
import pytest

from sb3_mbrl.planners.tree_search.root import add_noise, considered_visits


def test_sequential_halving_as_in_the_paper():
    """16 simulations for 4 edges: two phases of 8 visits, 2 for each of 4 edges, then 4 for each of the best 2."""
    assert considered_visits(4, 16)[4].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert considered_visits(4, 16)[1].tolist() == list(range(16))


def test_what_is_left_of_the_budget_goes_to_the_last_two_edges():
    """Four edges and two phases of 6 simulations: 4 + 6, and then 2 of one more phase, in which two edges are left."""
    assert considered_visits(4, 12)[4].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_with_fewer_simulations_than_edges_each_visits_another_one():
    assert considered_visits(16, 3)[16].tolist() == [0, 0, 0]


def test_dirichlet_noise_has_its_mean_and_spread():
    legal = np.tile([True, True, False, True], (20_000, 1))
    prior = np.tile([0.7, 0.2, 0.0, 0.1], (20_000, 1))
    before = prior.copy()
    add_noise(prior, legal, 0.3, 0.25, np.random.default_rng(0))
    assert (prior[:, 2] == 0).all()
    assert np.allclose(prior.sum(1), 1)
    noise = ((prior - 0.75 * before) / 0.25)[:, legal[0]]
    assert noise.mean(0) == pytest.approx([1 / 3] * 3, abs=0.01)
    # The variance of a symmetric Dirichlet of k = 3 and alpha = 0.3: (1/k)(1 - 1/k) / (k alpha + 1)
    assert noise.var(0) == pytest.approx([(1 / 3) * (2 / 3) / 1.9] * 3, rel=0.05)


def test_tiny_alphas_are_no_division_by_zero():
    prior = np.full((1000, 5), 0.2)
    add_noise(prior, np.ones((1000, 5), bool), 1e-4, 1.0, np.random.default_rng(0))
    assert np.isfinite(prior).all()
    assert prior.max(1).mean() > 0.999, "nearly all of the noise falls on one action"


def test_auto_is_ten_over_the_number_of_legal_actions():
    some, many = np.full((5000, 10), 0.1), np.full((5000, 2), 0.5)
    add_noise(some, np.ones_like(some, bool), None, 1.0, np.random.default_rng(0))
    add_noise(many, np.ones_like(many, bool), None, 1.0, np.random.default_rng(0))
    assert some.var(0).mean() == pytest.approx(0.1 * 0.9 / 11, rel=0.05)
    assert many.var(0).mean() == pytest.approx(0.25 / 11, rel=0.05)
