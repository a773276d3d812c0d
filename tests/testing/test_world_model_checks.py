"""The kit finds what is wrong with a world model: for every check one that breaks it."""

import re

import pytest
import torch as th
from torch import nn

from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import (
    NeighbourToy,
    world_model_checks,
)
from tests.testing.broken_models import BROKEN_MODELS

CHECKS = {check.__name__: check for check in world_model_checks()}


@pytest.mark.parametrize(("name", "model", "message"), BROKEN_MODELS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_world_model_is_found(name, model, message):
    with pytest.raises(PluginContractError) as caught:
        CHECKS[name](model)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith(model.__name__)
    assert text.endswith(f"[contract v2, {name}]")


def test_every_world_model_check_can_fail():
    """A check that nothing fails checks nothing. (CUDA: see the toys on a machine that has it.)"""
    assert {name for name, *_ in BROKEN_MODELS} == {check.__name__ for check in world_model_checks()} - {"check_cuda"}


class DataShaped(NeighbourToy):
    """Its parameters have as many rows as its data."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._resize(0)

    def _resize(self, rows):
        self.bias = nn.Parameter(th.zeros(rows))

    def fit(self, data, budget=None, *, generator=None):
        metrics = super().fit(data, budget, generator=generator)
        self._resize(len(self._outputs))
        with th.no_grad():
            self.bias.fill_(0.25)
        return metrics

    def step(self, state, action, *, deterministic=False, generator=None):
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(reward=prediction.reward + self.bias.mean())

    def load_extra_state(self, extra):
        super().load_extra_state(extra)
        self._resize(len(self._outputs))


def test_parameters_shaped_by_data_survive_because_extra_state_comes_first():
    for name in ("check_save_load", "check_fit_after_load", "check_state_dict", "check_pickle_and_deepcopy"):
        CHECKS[name](DataShaped)
