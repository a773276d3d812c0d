"""Every hook of sb3-mbrl, by phase. Read this file to know what can be plugged in.

A plugin is a module, a class or an object with functions of these names, each marked with :data:`sb3_mbrl.hookimpl`::

    from sb3_mbrl import hookimpl
    from sb3_mbrl.contracts import WorldModelSpec

    @hookimpl
    def sb3_mbrl_world_models():
        return [WorldModelSpec(name="gp", factory="sb3_mbrl_gp.model:GPModel", summary="Gaussian process")]

A plugin is found through an entry point of the group ``sb3_mbrl`` in its distribution, or given to one agent as
``plugins=[...]``.

**Registration hooks** return a list of records and are called once, when something is first looked up by name. **Life-cycle
hooks** are called at the boundaries of phases, never inside a planner's or a rollout's loop. They are called with keyword
arguments, of which an implementation may take a subset; their results are ignored.
"""

from typing import Any

import pluggy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.contracts import AlgorithmSpec, EnvFunctionsSpec, ImaginationSpec, Imagined, PlannerSpec, WorldModelSpec

PROJECT_NAME = "sb3_mbrl"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)

# ------------------------------------------------------------------------------------------------------------ registration


@hookspec
def sb3_mbrl_algorithms() -> list[AlgorithmSpec]:
    """Offer algorithm classes, for ``sb3-mbrl train --algo NAME``."""
    return []


@hookspec
def sb3_mbrl_world_models() -> list[WorldModelSpec]:
    """Offer world models, for ``world_model="name"``."""
    return []


@hookspec
def sb3_mbrl_planners() -> list[PlannerSpec]:
    """Offer planners, for ``planner="name"``."""
    return []


@hookspec
def sb3_mbrl_imaginations() -> list[ImaginationSpec]:
    """Offer imaginations, for ``imagination="name"``."""
    return []


@hookspec
def sb3_mbrl_env_functions() -> list[EnvFunctionsSpec]:
    """Offer known rewards and terminations by Gymnasium id."""
    return []


# -------------------------------------------------------------------------------------------------------------- life cycle


@hookspec
def sb3_mbrl_on_setup(agent: OffPolicyAlgorithm) -> None:
    """Called when the agent has built its networks and its world model (also after ``load``)."""


@hookspec
def sb3_mbrl_before_model_fit(agent: OffPolicyAlgorithm) -> None:
    """Called before the world model is fitted."""


@hookspec
def sb3_mbrl_after_model_fit(agent: OffPolicyAlgorithm, metrics: dict[str, float]) -> None:
    """Called when the world model has been fitted and evaluated. Hooks may add to ``metrics``, logged under ``model/``."""


@hookspec
def sb3_mbrl_before_imagination(agent: OffPolicyAlgorithm, horizon: int, n_starts: int) -> None:
    """Called before rollouts are imagined."""


@hookspec
def sb3_mbrl_after_imagination(agent: OffPolicyAlgorithm, imagined: Imagined) -> None:
    """Called when rollouts have been imagined and stored. ``imagined`` is ``(T, B, ...)``, with a mask of ``valid`` rows."""


@hookspec
def sb3_mbrl_before_policy_update(agent: OffPolicyAlgorithm, gradient_steps: int, batch_size: int) -> None:
    """Called before the policy is updated, by the base class's ``train`` on mixed batches or by the algorithm's own."""


@hookspec
def sb3_mbrl_after_policy_update(agent: OffPolicyAlgorithm, gradient_steps: int, batch_size: int) -> None:
    """Called when the policy has been updated."""


@hookspec
def sb3_mbrl_on_save(agent: OffPolicyAlgorithm, extra: dict[str, Any]) -> None:
    """
    Called when the agent is being saved. Values that a plugin puts into ``extra`` under its own name (JSON values, arrays and
    tensors) come back in ``sb3_mbrl_on_load``.
    """


@hookspec
def sb3_mbrl_on_load(agent: OffPolicyAlgorithm, extra: dict[str, Any]) -> None:
    """Called when the agent has been loaded, with the values of ``sb3_mbrl_on_save``."""
