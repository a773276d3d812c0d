"""The table as a world model."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.models.tabular.model import TabularModel


def test_the_model_draws_decodes_and_keeps_its_counts():
    space, actions = spaces.Discrete(5, start=10), spaces.Discrete(2, start=1)
    model = TabularModel(space, actions, device="cpu")
    for following in (1, 1, 1, 2):
        model.record(0, 1, 2.0, following, following == 2)
    state = model.initial(th.full((2_000, 1), 10))
    prediction = model.step(state, th.full((2_000, 1), 2), generator=th.Generator().manual_seed(0))
    assert float(prediction.terminated.mean()) == pytest.approx(0.25, abs=0.04)
    assert set(model.decode(prediction.state).flatten().tolist()) == {11, 12}
    sure = model.step(state[:1], th.tensor([[2]]), deterministic=True)
    assert (int(sure.state), float(sure.reward), float(sure.terminated)) == (1, 2.0, 0.0)
    untried = model.step(state[:1], th.tensor([[1]]), deterministic=True)
    assert (int(untried.state), float(untried.reward), float(untried.terminated)) == (0, 0.0, 0.0)


def test_what_the_model_does_not_take():
    with pytest.raises(UnsupportedSpace, match="it takes Discrete observations, not Box"):
        TabularModel(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match="memory=2: give a number from 0"):
        TabularModel(spaces.Discrete(2), spaces.Discrete(2), memory=2)
