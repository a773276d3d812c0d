"""World models, built-in parts and sources of plugins for the tests of the plugin system."""

import warnings

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import (
    EnvFunctions,
    EnvFunctionsSpec,
    PlannerSpec,
    Prediction,
    WorldModel,
    WorldModelSpec,
)
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.plugins import (
    PluginWarning,
    Registry,
    get_registry,
)

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
DICT = spaces.Dict({"a": VECTOR})


class Still(WorldModel):
    """A model in which nothing ever changes."""

    def __init__(self, observation_space, action_space, *, speed=0.0, members=1, **kwargs):
        super().__init__(observation_space, action_space, **kwargs)
        self.speed, self.n_members = speed, members

    def initial(self, obs, snapshot=None):
        return obs

    def step(self, state, action, *, deterministic=False, generator=None):
        return Prediction(state, th.zeros(len(state)), th.zeros(len(state)))


class Strict(Still):
    """A model that names its arguments one by one."""

    def __init__(
        self, observation_space, action_space, *, n_hidden=8, ridge=1.0, reward_fn=None, termination_fn=None, device="cpu"
    ):
        if ridge < 0:
            raise TypeError("ridge is negative")
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self.n_hidden = n_hidden


def only_vectors(observation_space, action_space):
    return None if isinstance(observation_space, spaces.Box) else "only Box observations"


def hopper_functions(env):
    return EnvFunctions(termination_fn=lambda obs, action, next_obs: next_obs[:, 0] < 0.7)


class BuiltIn:
    """A stand-in for sb3_mbrl.builtin, so that these tests do not depend on what the library happens to offer."""

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [
            WorldModelSpec(name="ensemble", factory=Still, summary="the default", supports=only_vectors, auto_rank=10),
            WorldModelSpec(name="tabular", factory=Strict, summary="counts", auto_rank=1),
        ]

    @hookimpl
    def sb3_mbrl_planners(self):
        return [PlannerSpec(name="cem", factory=f"{__name__}:nothing_yet")]

    @hookimpl
    def sb3_mbrl_env_functions(self):
        return [EnvFunctionsSpec(name="hopper", factory=hopper_functions, env_ids=("Hopper-v[45]",))]


GOOD = """
    from sb3_mbrl.hookspecs import hookimpl
    from sb3_mbrl.contracts import WorldModelSpec

    @hookimpl
    def sb3_mbrl_world_models():
        return [WorldModelSpec(name={name!r}, factory="tests.plugins.plugin_fakes:Strict", summary="a good one",
                               contract={contract}, override={override})]
"""


def good(name: str = "gp", contract: int = 2, override: bool = False) -> str:
    return GOOD.format(name=name, contract=contract, override=override)


BROKEN = "import no_such_package_anywhere\n"


HOOK = "from sb3_mbrl.hookspecs import hookimpl\nfrom sb3_mbrl.contracts import *\n@hookimpl\n"


class Local2(Still):
    """A model that nobody registered."""


class Given:
    """A plugin that is given to an agent."""

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(name="mine", factory=Local2)]


def broken_registry() -> Registry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return get_registry()
