"""Infoprop's rule on two members whose disagreement is known."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl import MBPO
from sb3_mbrl.imagination.infoprop import InformedRollouts, lost_information
from sb3_mbrl.imagination.uncertainty import fuse
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))


def toy(**kwargs):
    return EnsembleToy(OBS, ACTION, device="cpu", **{"decay": 1.0, **kwargs})


def still(obs):
    """Take the action that does nothing."""
    return th.zeros(len(obs), 1)


def lost(x, noise=0.1, spread=0.1):
    """Compute the bits that a step from ``x`` loses: the entropy of ``(1 - K) var`` in bins of 1e-6."""
    variance, disagreement = noise**2, (spread * x) ** 2
    remaining = variance * disagreement / (variance + disagreement)
    return max(0.0, 0.5 * math.log2(2 * math.pi * math.e * remaining) - math.log2(1e-6))


def test_the_loss_of_a_step_is_an_entropy():
    model = toy(spread=0.1)
    members = model.members(th.tensor([[1.0], [3.0]]), th.zeros(2, 1))
    assert lost_information(fuse(members))[:, 0].tolist() == pytest.approx([lost(1.0), lost(3.0)], rel=1e-5)
    agreeing = toy(spread=0.0).members(th.ones(1, 1), th.zeros(1, 1))
    assert lost_information(fuse(agreeing)).item() < 1.0


def test_rollouts_end_when_the_loss_of_a_step_or_their_sum_is_too_large(generator):
    # Rewards, observations and members stay nearly where they are (noise 1e-3), so that losses are those of the starts.
    model = toy(spread=1e-3, member_noise=1e-3)
    first = th.cat([th.full((99, 1), 1.0), th.full((1, 1), 30.0)])
    by_rate = InformedRollouts(horizon=10, rate_quantile=0.5, sum_quantile=1.0)
    imagined = by_rate.imagine(model, model.initial(first), still, 10, generator=generator)
    assert imagined.valid[:, -1].sum() == 0, "more is lost there than at half of the starts"
    assert imagined.valid[0, :-1].float().mean() > 0.4
    first[0] = 1000.0  # loses most, so that no other row exceeds the limit of a step
    by_sum = InformedRollouts(horizon=10, rate_quantile=1.0, sum_quantile=0.5)
    imagined = by_sum.imagine(model, model.initial(first), still, 10, generator=generator)
    a, b = lost(1.0, 1e-3, 1e-3), lost(30.0, 1e-3, 1e-3)
    assert b > a
    assert int(imagined.valid[:, -1].sum()) == int(10 * a / b), "the tenth part of the sum is reached that much sooner"


def test_noise_stays_and_disagreement_is_filtered_out(generator):
    x = th.full((40_000, 1), 1.0)
    spread = {}
    for spread_of in (0.0, 5.0):
        model = toy(spread=spread_of, member_noise=0.1)
        rule = InformedRollouts(horizon=1, rate_quantile=1.0, sum_quantile=1.0)
        drawn = rule.imagine(model, model.initial(x), still, 1, generator=generator).next_obs[0]
        spread[spread_of] = float(drawn.std()), float(drawn.mean())
    assert spread[0.0] == pytest.approx((0.1, 1.0), abs=0.002)
    # Members at -4 and 6: a plain draw of a member would have a deviation of 5. K = 0.01 / 25.01.
    assert spread[5.0] == pytest.approx((0.1, 1.0), abs=0.005)


def test_spaces_that_no_gaussian_describes_are_refused():
    class Bits(spaces.MultiBinary):
        pass

    from sb3_mbrl.contracts import UnsupportedSpace
    from sb3_mbrl.spaces import numbers_alone

    with pytest.raises(UnsupportedSpace, match="imagination='infoprop' draws from Gaussians"):
        numbers_alone(Bits(3), "imagination='infoprop'", "'macura'")


def test_it_trains_an_agent():
    agent = MBPO(
        "MlpPolicy",
        "Pendulum-v1",
        world_model="ensemble",
        world_model_kwargs={"members": 2, "elites": 2, "hidden": [32]},
        imagination="infoprop",
        imagination_kwargs={"starts_per_step": 5, "horizon": 5},
        learning_starts=150,
        gradient_steps=1,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    ).learn(160)
    assert agent.imagined is not None
    assert len(agent.imagined) > 0
