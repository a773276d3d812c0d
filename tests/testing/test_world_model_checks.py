"""The kit's checks of a world model's structure: for each a model that breaks it."""

import re

import pytest

from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing.world_model_checks import STRUCTURE_CHECKS
from tests.testing.broken_models import BROKEN_MODELS

CHECKS = {check.__name__: check for check in STRUCTURE_CHECKS}
BROKEN = [case for case in BROKEN_MODELS if case[0] in CHECKS]


@pytest.mark.parametrize(("name", "model", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_world_model_is_found(name, model, message):
    with pytest.raises(PluginContractError) as caught:
        CHECKS[name](model)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith(model.__name__)
    assert text.endswith(f"[contract v2, {name}]")


def test_every_world_model_check_can_fail():
    """A check that nothing fails checks nothing. (CUDA: see the toys on a machine that has it.)"""
    assert {name for name, *_ in BROKEN} == set(CHECKS) - {"check_cuda"}
