"""MOPO's penalty on members whose noise is known."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.imagination.mopo import PenalisedRollouts
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))


def toy(**kwargs):
    return EnsembleToy(OBS, ACTION, device="cpu", **{"decay": 1.0, **kwargs})


def still(obs):
    """Take the action that does nothing."""
    return th.zeros(len(obs), 1)


def test_the_reward_is_lowered_by_the_largest_deviation(generator):
    model, rule = toy(member_noise=0.3), PenalisedRollouts(horizon=2, penalty=2.0)
    imagined = rule.imagine(model, model.initial(th.randn(6, 1)), still, 2, generator=generator)
    th.testing.assert_close(imagined.reward, imagined.next_obs[..., 0] - 2.0 * 0.3)
    assert imagined.valid.all()


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match="penalty"):
        PenalisedRollouts(penalty=-1.0)
