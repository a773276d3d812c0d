"""The kit's checks of learning and saving: for each a model that breaks it."""

import re
from unittest import SkipTest

import pytest

from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.testing import LinearToy, NeighbourToy
from sb3_mbrl.testing.learning_checks import LEARNING_CHECKS, check_fit_learns, check_held_out
from sb3_mbrl.testing.world_model_checks import check_loss, check_optimizer
from tests.testing.broken_models import BROKEN_MODELS, DataShaped

CHECKS = {check.__name__: check for check in LEARNING_CHECKS}
BROKEN = [case for case in BROKEN_MODELS if case[0] in CHECKS]


@pytest.mark.parametrize(("name", "model", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_model_that_breaks_a_check_fails_it(name, model, message):
    with pytest.raises(PluginContractError) as caught:
        CHECKS[name](model)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.startswith(model.__name__)
    assert text.endswith(f"[contract v2, {name}]")


def test_every_check_can_fail():
    """A check that nothing fails checks nothing."""
    assert {name for name, *_ in BROKEN} == set(CHECKS)


def test_parameters_shaped_by_data_survive_because_extra_state_comes_first():
    for name in ("check_save_load", "check_fit_after_load", "check_state_dict", "check_pickle_and_deepcopy"):
        CHECKS[name](DataShaped)


def test_skips_are_skips_and_not_failures():
    with pytest.raises(SkipTest, match="has no loss"):
        check_loss(LinearToy)


@pytest.mark.parametrize(
    ("check", "part", "reason"),
    [
        (check_fit_learns, LinearToy, "LinearToy is known: there is nothing to learn"),
        (check_held_out, LinearToy, "LinearToy is known: there is nothing to learn"),
        (check_optimizer, NeighbourToy, "NeighbourToy has no optimizer"),
    ],
)
def test_what_does_not_apply_is_skipped_with_its_reason(check, part, reason):
    with pytest.raises(SkipTest, match=reason):
        check(part)
