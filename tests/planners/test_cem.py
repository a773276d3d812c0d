"""CEM: elites."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.planners import CEM
from sb3_mbrl.planners.base import top


def test_sequences_that_diverged_are_no_elites():
    actions, returns = th.arange(8.0).view(2, 4, 1, 1), th.tensor([[1.0, -th.inf, 3.0, -th.inf], [-th.inf] * 4])
    elites = top(actions, returns, 3)
    assert elites.weights.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert elites.value.tolist() == [2.0, -np.inf]
    planner = CEM(spaces.Box(-1, 1, (1,)), horizon=1, population=4)
    parameters = planner.distribution.initial(2, th.device("cpu"))
    fitted = planner._refit(parameters, elites._replace(actions=elites.actions / 10), 0.0)
    assert fitted["mean"].flatten().tolist() == pytest.approx([0.1, 0.0])
    assert fitted["std"][1].item() == parameters["std"][1].item(), "where everything diverged, the parameters stay"
