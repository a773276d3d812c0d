"""The entries of the registry: kinds of parts, plugins, and records of parts with their origin."""

import re
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import EntryPoint
from typing import Any, Literal, NamedTuple

from sb3_mbrl.contracts import (
    AlgorithmSpec,
    EnvFunctions,
    EnvFunctionsSpec,
    Imagination,
    ImaginationSpec,
    PartSpec,
    Planner,
    PlannerSpec,
    WorldModel,
    WorldModelSpec,
)


class Kind(NamedTuple):
    """
    One kind of part.

    :param label: the name of the kind in messages
    :param hook: the name of the registration hook
    :param spec: the type of its records
    :param product: the type that a factory of this kind returns
    :param given: the arguments that the library, not the user, gives to every factory of this kind
    """

    label: str
    hook: str
    spec: type[PartSpec]
    product: type
    given: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "algorithm": Kind("algorithm", "sb3_mbrl_algorithms", AlgorithmSpec, object),
    "world_model": Kind(
        "world model",
        "sb3_mbrl_world_models",
        WorldModelSpec,
        WorldModel,
        ("observation_space", "action_space", "reward_fn", "termination_fn", "device"),
    ),
    "planner": Kind("planner", "sb3_mbrl_planners", PlannerSpec, Planner, ("action_space",)),
    "imagination": Kind("imagination", "sb3_mbrl_imaginations", ImaginationSpec, Imagination),
    "env_functions": Kind("environment functions", "sb3_mbrl_env_functions", EnvFunctionsSpec, EnvFunctions, ("env",)),
}


class Layer(IntEnum):
    """The distance of a plugin from the user: the higher, the nearer."""

    BUILT_IN = 0
    INSTALLED = 1
    GIVEN = 2


def normalise(distribution: str) -> str:
    """Return the canonical form of a distribution's name (``My_GP`` and ``my-gp`` are the same)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class Origin:
    """
    The origin of a record.

    :param plugin: the entry point's name, or the name of the module or class that was given to an agent
    :param distribution: the distribution's name, empty for a plugin that was given to an agent
    :param version: the distribution's version
    :param layer: whether the plugin is built in, installed, or given to this agent
    """

    plugin: str
    distribution: str = ""
    version: str = ""
    layer: Layer = Layer.INSTALLED

    def __str__(self) -> str:
        return {
            Layer.BUILT_IN: "built in",
            Layer.INSTALLED: f"{self.distribution} {self.version}",
            Layer.GIVEN: "given to this agent",
        }[self.layer]

    @property
    def title(self) -> str:
        """The origin as the subject of a sentence."""
        if self.layer is Layer.GIVEN:
            return f"{self.plugin} (given to this agent)"
        return f"{self.distribution} {self.version}" + (" (built in)" if self.layer is Layer.BUILT_IN else "")

    def is_called(self, name: str) -> bool:
        """Tell whether ``name`` means this plugin: its entry point, its distribution, or both with a colon between."""
        if name == self.plugin:
            return True
        distribution = normalise(self.distribution)
        return bool(distribution) and normalise(name) in (distribution, f"{distribution}:{normalise(self.plugin)}")


@dataclass(frozen=True)
class Record:
    """
    A part that a plugin offers.

    :param origin: the plugin that offers the part
    :param spec: the plugin's description of the part
    """

    origin: Origin
    spec: PartSpec

    def __str__(self) -> str:
        return f"{KINDS[self.spec.kind].label} {self.spec.name!r} ({self.origin})"


@dataclass(frozen=True)
class Plugin:
    """
    A plugin, loaded or not.

    :param origin: its name and distribution
    :param status: ``"ok"``, ``"broken"`` (see ``error``) or ``"blocked"`` (see ``blocked_by``)
    :param implementation: the module or object with the hooks
    :param hooks: the names of the hooks it implements
    :param records: the parts it offers
    :param error: the error that loading it raised
    :param blocked_by: the environment variable that keeps it out
    :param entry_point: the entry point that loads it
    """

    origin: Origin
    status: Literal["ok", "broken", "blocked"]
    implementation: Any = None
    hooks: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    error: Exception | None = None
    blocked_by: str = ""
    entry_point: EntryPoint | None = None

    def __str__(self) -> str:
        return f"{self.origin.plugin} ({self.origin})"
