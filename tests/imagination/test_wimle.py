"""WIMLE's weights on members whose spread is known."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl import MBPO
from sb3_mbrl.imagination.wimle import ConfidentRollouts
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))


def toy(**kwargs):
    return EnsembleToy(OBS, ACTION, device="cpu", **{"decay": 1.0, **kwargs})


def still(obs):
    """Take the action that does nothing."""
    return th.zeros(len(obs), 1)


def test_rows_follow_the_mean_and_have_the_models_confidence_as_weight(generator):
    model, rule = toy(spread=0.1, member_noise=0.2, noise=5.0), ConfidentRollouts(horizon=2, scale=3.0)
    x = th.tensor([[1.0], [2.0]])
    imagined = rule.imagine(model, model.initial(x), still, 2, generator=generator)
    th.testing.assert_close(imagined.next_obs[0], x)
    # The next observation: noise 0.2, members at x (1 - 0.1) and x (1 + 0.1). The reward is the next observation's mean.
    s = (0.2**2 + (0.1 * x).square()).sqrt() + 0.1 * x
    th.testing.assert_close(imagined.weight, (1 / (1 + 3 * s)).squeeze(1).expand(2, -1))
    assert rule.confidence == pytest.approx(float(imagined.weight.mean()))
    assert imagined.info["confidence"] == rule.confidence


def test_the_share_of_imagined_rows_follows_their_confidence():
    agent = MBPO(
        "MlpPolicy",
        "Pendulum-v1",
        world_model="ensemble",
        world_model_kwargs={"members": 2, "elites": 2, "hidden": [32]},
        imagination="wimle",
        learning_starts=150,
        gradient_steps=1,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    ).learn(160)
    rule = agent.imagination
    assert isinstance(rule, ConfidentRollouts)
    assert 0 < rule.confidence < 1
    sampler = agent._sampler()
    assert sampler is not None
    assert sampler.real_ratio == pytest.approx(1 / (1 + rule.confidence))
    assert agent.parts.state_dict()["imagination"] == {"confidence": rule.confidence}


def test_a_share_that_would_have_no_effect_is_refused():
    with pytest.raises(ValueError, match=r"real_ratio=0\.2: ConfidentRollouts does not mix rows by it"):
        MBPO("MlpPolicy", "Pendulum-v1", imagination="wimle", real_ratio=0.2)
    MBPO("MlpPolicy", "Pendulum-v1", imagination="wimle", imagination_kwargs={"balanced": False}, real_ratio=0.2)
