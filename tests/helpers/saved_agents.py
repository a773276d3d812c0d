"""Agents to be saved and loaded: shared by the tests of checkpoints."""

import numpy as np
import torch as th

from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import WorldModelSpec
from sb3_mbrl.models.ensemble import EnsembleModel
from tests.helpers.agents import learned

QUICK = {
    "learning_starts": 20,
    "fit_freq": 20,
    "batch_size": 16,
    "fit_kwargs": {"max_batches": 40, "batch_size": 16},
    "imagination_kwargs": {"freq": 10, "starts_per_step": 4, "max_age": 30, "horizon": 2},
}
OBS = np.array([[1.0, 0.0, 0.5], [0.0, -1.0, -3.0]], np.float32)


def quick(**kwargs) -> MBPO:
    return learned(**{**QUICK, **kwargs})


class ScaledModel(EnsembleModel):
    """A model that an example's plugin offers."""


class Offers:
    """A plugin given to an agent."""

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(name="scaled", factory=ScaledModel)]


def same_parameters(one: MBPO, other: MBPO) -> None:
    a, b = one.get_parameters(), other.get_parameters()
    assert list(a) == list(b)
    for name in a:
        # Optimisers too: groups hold numbers, states tensors.
        tensors = [list(_values(params[name])) for params in (a, b)]
        assert len(tensors[0]) == len(tensors[1]) > 0
        assert all(np.array_equal(x, y) for x, y in zip(*tensors, strict=True)), name


def _values(value):
    if isinstance(value, dict):
        for child in value.values():
            yield from _values(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _values(child)
    else:
        yield value.numpy() if isinstance(value, th.Tensor) else value
