"""Toy models for the tests of ``ModelVecEnv``."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.testing import LinearToy, ToyData

OBS = spaces.Box(-np.inf, np.inf, (3,))
UNIT = spaces.Box(-1.0, 1.0, (2,))
ZERO = np.zeros((1, 3), dtype=np.float32)


def linear(action_space=UNIT, observation_space=OBS, **kwargs):
    return LinearToy(observation_space, action_space, device="cpu", **kwargs)


def fitted(cls, case):
    model = cls(case.observation_space, case.action_space, device="cpu")
    data = ToyData(case.observation_space, case.action_space, steps=40)
    if model.learns:
        fit_world_model(model, data, FitBudget(max_batches=5), generator=th.Generator().manual_seed(0))
    return model, data
