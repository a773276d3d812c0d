"""iCEM: coloured noise and kept elites."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl.planners import ICEM
from sb3_mbrl.planners.icem import coloured_noise
from sb3_mbrl.planners.rollout import evaluate
from tests.planners.problems import CPU, HORIZON, ONE, STARTS, LinearQuadratic, plan, rng


@pytest.mark.parametrize("steps", [9, 10, 25])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 4.0])
def test_coloured_noise_has_unit_variance(steps, exponent):
    noise = coloured_noise((20_000, 1, steps), exponent, rng(), CPU)
    assert noise.shape == (20_000, 1, steps)
    assert float(noise.var()) == pytest.approx(1.0, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_coloured_noise_has_its_spectrum(exponent):
    steps = 64
    power = th.fft.rfft(coloured_noise((4_000, steps), exponent, rng(), CPU)).abs().square().mean(0)[1:-1]
    frequency = np.fft.rfftfreq(steps)[1:-1]
    slope = np.polyfit(np.log(frequency), power.log().numpy(), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_icem_without_elites_of_earlier_does_not_lose_its_best(monkeypatch):
    scored = []

    def recorded(*args, **kwargs):
        evaluation = evaluate(*args, **kwargs)
        scored.append(evaluation.returns)
        return evaluation

    monkeypatch.setattr("sb3_mbrl.planners.base.evaluate", recorded)
    planned = plan(ICEM(ONE, horizon=HORIZON, population=16, iterations=6, keep=0.0), LinearQuadratic(), STARTS)
    assert len(scored) == 6
    th.testing.assert_close(planned.value, th.cat(scored, 1).max(1).values)
