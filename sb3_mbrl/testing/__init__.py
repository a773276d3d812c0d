"""The conformance kit for authors of plugins.

::

    from sb3_mbrl.testing import parametrize_with_checks

    @parametrize_with_checks([GPModel], expected_failed_checks={"check_cuda": "CPU only"})
    def test_contract(part, check):
        check(part)

or ``check_world_model(GPModel)``, which runs all checks and raises one :class:`~sb3_mbrl.plugins.PluginContractError` that
lists the failures: what is wrong, the file and line in your code, the requirement, the remedy, and the check. One mistake
gives one message: checks that a failed one spoils are not tried, and neither is what your part does not support.
:mod:`sb3_mbrl.testing.toys` has small world models with known results, for tests of planners and imaginations.
"""

from sb3_mbrl.plugins.validation import validate_prediction
from sb3_mbrl.testing.checks import (
    check_imagination,
    check_planner,
    check_world_model,
    imagination_checks,
    parametrize_with_checks,
    planner_checks,
    world_model_checks,
)
from sb3_mbrl.testing.toy_data import CASES, Case, ToyData, ToySystem
from sb3_mbrl.testing.toys import EnsembleToy, LinearToy, NeighbourToy, RecurrentToy, RewardToy, TwoPlayerToy, WeightedToy

__all__ = [
    "CASES",
    "Case",
    "EnsembleToy",
    "LinearToy",
    "NeighbourToy",
    "RecurrentToy",
    "RewardToy",
    "ToyData",
    "ToySystem",
    "TwoPlayerToy",
    "WeightedToy",
    "check_imagination",
    "check_planner",
    "check_world_model",
    "imagination_checks",
    "parametrize_with_checks",
    "planner_checks",
    "validate_prediction",
    "world_model_checks",
]
