"""Distributions over sequences of actions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.planners import CEM, ICEM
from sb3_mbrl.planners.action_distributions import make_action_distribution, mask_first, start
from tests.planners.problems import CPU, rng


def test_what_follows_the_plan():
    """PETS begins the last step with nothing, iCEM's authors with the step before."""
    box = spaces.Box(-1, 1, (1,))
    parameters = {"mean": th.tensor([[[0.1], [0.2], [0.3]]]), "std": th.ones(1, 3, 1)}
    kept, forgotten = (
        planner(box, horizon=3).distribution.warm(parameters)["mean"].flatten().tolist() for planner in (ICEM, CEM)
    )
    assert kept == pytest.approx([0.2, 0.3, 0.3])
    assert forgotten == pytest.approx([0.2, 0.3, 0.0])


def test_a_truncated_normal_stays_within_two_deviations_and_the_bounds():
    """PETS: the variance is cut so that two deviations fit between the mean and the nearer bound."""
    distribution = make_action_distribution(spaces.Box(-1.0, 1.0, (1,)), 2, std=0.5, truncate=True)
    parameters = {"mean": th.tensor([[[0.0], [0.8]]]), "std": th.full((1, 2, 1), 0.5)}
    drawn = distribution.sample(parameters, 50_000, rng())[0, :, :, 0]
    assert drawn[:, 0].abs().max() == pytest.approx(1.0, abs=0.01)
    assert drawn[:, 1].min() == pytest.approx(0.6, abs=0.01)
    assert drawn[:, 1].max() == pytest.approx(1.0, abs=0.01)
    # The variance of a normal distribution cut at 2: 1 - 4 phi(2) / (2 Phi(2) - 1).
    cut = 1 - 4 * np.exp(-2) / np.sqrt(2 * np.pi) / 0.9544997
    assert float(drawn[:, 0].var()) == pytest.approx(0.25 * cut, rel=0.02)


def test_a_refit_is_the_weighted_mean_and_variance():
    distribution = make_action_distribution(spaces.Box(-1.0, 1.0, (1,)), 1)
    actions, weights = th.tensor([[[[0.2]], [[0.6]]]]), th.tensor([[0.25, 0.75]])
    parameters = distribution.refit(distribution.initial(1, CPU), actions, weights, 0.5)
    assert float(parameters["mean"]) == pytest.approx(0.5 * 0.5)
    assert float(parameters["std"]) == pytest.approx((0.5 * 0.25 + 0.5 * (0.25 * 0.09 + 0.75 * 0.01)) ** 0.5)


def test_categories_beyond_the_count_are_never_drawn():
    distribution = make_action_distribution(spaces.MultiDiscrete([2, 4], start=[0, 7]), 3)
    drawn = distribution.sample(distribution.initial(2, CPU), 5_000, rng())
    assert drawn.shape == (2, 5_000, 3, 2)
    assert set(drawn[..., 0].unique().tolist()) == {0, 1}
    assert set(drawn[..., 1].unique().tolist()) == {7, 8, 9, 10}


def test_a_categorical_refit_counts():
    distribution = make_action_distribution(spaces.Discrete(3), 1)
    actions = th.tensor([[[[0]], [[2]], [[2]]]])
    parameters = distribution.refit(distribution.initial(1, CPU), actions, th.full((1, 3), 1 / 3), 0.0)
    assert parameters["probs"][0, 0, 0].tolist() == pytest.approx([1 / 3, 0.0, 2 / 3])
    assert distribution.mode(parameters).item() == 2


def test_a_mask_leaves_what_is_allowed():
    distribution = make_action_distribution(spaces.Discrete(3), 2)
    masked = mask_first(distribution.initial(1, CPU), th.tensor([[True, False, True]]), distribution)["probs"]
    assert masked[0, 0, 0].tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert masked[0, 1, 0].tolist() == pytest.approx([1 / 3] * 3)


def test_rows_restart_where_an_episode_begins():
    distribution = make_action_distribution(spaces.Box(-1.0, 1.0, (1,)), 3)
    carry = {"mean": th.tensor([[[0.1], [0.2], [0.3]]]).repeat(2, 1, 1), "std": th.full((2, 3, 1), 0.01)}
    parameters = start(distribution, carry, th.tensor([True, False]), 2, CPU)
    assert parameters["mean"][:, :, 0].tolist() == [[0.0, 0.0, 0.0], pytest.approx([0.2, 0.3, 0.0])]
    assert (parameters["std"] == 0.5).all()
