"""The records by which plugins describe their parts, collected by the registration hooks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gymnasium import spaces

CONTRACT_VERSION = 2
"""
The version of the contract in :mod:`sb3_mbrl.contracts`; a plug-in's record states the version that it was written for.
Version 2 may still change until the first release of sb3-mbrl.
"""

CHANGED_IN_2 = """\
  Since version 1: a world model's loss(batch, start=None, *, generator=None) returns contracts.Loss, a record of tensors; its
  fit receives data without the held-out rows (data.held_out() has them, for early stopping alone); planners call
  prior(state, generator) and honour deterministic; rollout rules derive from RolloutImagination, other imaginations implement
  sampler; log_prob is gone. docs/plugins.md shows a model, a planner and an imagination."""
"""The changes that the author of a plug-in of version 1 must make"""

Supports = Callable[[spaces.Space, spaces.Space], str | None]
"""
``supports(observation_space, action_space)`` returns ``None`` if the part takes the spaces, else the reason why it does not.
"""


def _supports_everything(observation_space: spaces.Space, action_space: spaces.Space) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """
    A plugin's record of one part that it offers.

    :param name: the name by which users choose the part, e.g. ``"ensemble"``
    :param factory: a class or a function, or ``"module:attribute"``, which is imported only when the part is asked for
    :param summary: one line for ``sb3-mbrl plugins``
    :param supports: a function that tells whether the part takes given spaces
    :param contract: the contract version that the part was written for. Published plug-ins state it; the default is the
        version of the installed library
    :param override: whether the part replaces another one of the same name on purpose
    """

    name: str
    factory: Callable[..., Any] | str
    summary: str = ""
    supports: Supports = _supports_everything
    contract: int = CONTRACT_VERSION
    override: bool = False
    kind: ClassVar[str] = "part"


@dataclass(frozen=True, kw_only=True)
class AlgorithmSpec(PartSpec):
    """
    The record of an algorithm; ``factory`` is an SB3 algorithm class.

    :param base: the name of the model-free class that the algorithm extends, e.g. ``"SAC"``, if any: rl-zoo3's settings and
        search space for it are used, and the command line loads agents of its subclasses with this algorithm
    """

    base: str = ""
    kind: ClassVar[str] = "algorithm"


@dataclass(frozen=True, kw_only=True)
class WorldModelSpec(PartSpec):
    """
    The record of a world model:
    ``factory(observation_space, action_space, *, reward_fn, termination_fn, device, **world_model_kwargs) -> WorldModel``.

    :param auto_rank: the rank among the candidates for ``world_model="auto"``, of which the highest that takes the spaces is
        chosen; ``None``: no candidate
    """

    auto_rank: int | None = None
    kind: ClassVar[str] = "world_model"


@dataclass(frozen=True, kw_only=True)
class PlannerSpec(PartSpec):
    """The record of a planner: ``factory(action_space, **planner_kwargs) -> Planner``."""

    kind: ClassVar[str] = "planner"


@dataclass(frozen=True, kw_only=True)
class ImaginationSpec(PartSpec):
    """The record of an imagination: ``factory(**imagination_kwargs) -> Imagination``."""

    kind: ClassVar[str] = "imagination"


@dataclass(frozen=True, kw_only=True)
class EnvFunctionsSpec(PartSpec):
    """
    The record of known functions: ``factory(env: gymnasium.Env) -> EnvFunctions`` reads limits and flags from the environment
    itself.

    :param env_ids: glob patterns of Gymnasium ids, e.g. ``("Hopper-v[45]",)``
    """

    env_ids: tuple[str, ...] = field(default=())
    kind: ClassVar[str] = "env_functions"
