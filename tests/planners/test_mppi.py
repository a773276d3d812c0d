"""MPPI: weights of sequences."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl.planners import MPPI
from sb3_mbrl.planners.mppi import path_weights
from tests.planners.problems import ONE, Line, plan, rng


def test_path_weights_by_hand():
    returns = th.tensor([[1.0, 3.0, -th.inf], [-th.inf] * 3])
    weights = path_weights(returns, 2.0)
    # Mean 2, deviations -1 and 1, standard deviation 1: exponentials of -1/2 and 1/2.
    low, high = np.exp(-0.5), np.exp(0.5)
    assert weights[0].tolist() == pytest.approx([low / (low + high), high / (low + high), 0.0])
    assert weights[1].tolist() == pytest.approx([1 / 3] * 3)


def test_one_bad_sequence_does_not_make_the_others_alike():
    """Standardised by the deviation, the best tenth had 0.10 of the weight, with an outlier at -100,000."""
    returns = th.linspace(-10.0, 0.0, 100)[None]
    with_outlier = th.cat([returns, th.tensor([[-1e5]])], 1)
    shares = [float(path_weights(x, 0.2)[:, 90:100].sum()) for x in (returns, with_outlier)]
    assert shares[0] > 0.7
    assert shares[1] > 0.5


def test_weights_of_equal_returns():
    assert path_weights(th.full((1, 4), 7.0), 0.1)[0].tolist() == pytest.approx([0.25] * 4)


def test_sigma_acts():
    """In mbrl-lib's MPPI the scaled noise is overwritten by noise that is not scaled."""
    spreads = {}
    for sigma in (0.05, 0.5):
        planner = MPPI(ONE, horizon=5, sigma=sigma, iterations=1, temperature=1e6)
        parameters = planner.distribution.initial(1, th.device("cpu"))
        spreads[sigma] = float(planner.distribution.sample(parameters, 5000, rng()).std())
    assert spreads[0.05] == pytest.approx(0.05, rel=0.05)
    assert spreads[0.5] == pytest.approx(0.46, rel=0.05)  # 0.5, clipped at 1


def test_temperature_goes_from_the_best_to_the_mean():
    best = plan(MPPI(ONE, horizon=2, iterations=1, temperature=1e-3), Line(), [[0.0]]).action
    mean = plan(MPPI(ONE, horizon=2, iterations=1, temperature=1e6), Line(), [[0.0]]).action
    assert best > 0.6
    assert abs(mean) < 0.1
