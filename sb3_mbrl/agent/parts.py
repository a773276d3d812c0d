"""The parts of an agent: chosen by the user (``world_model="gp"``) or named in a checkpoint, looked up, and built."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.agent.known_functions import (
    FUNCTIONS,
    check_function_choice,
    find_functions,
    functions_of_instance,
    plain_function,
    restored_function,
    saved_functions,
    try_functions,
)
from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.contracts import EnvFunctions, Imagination, LatentModel, Planner, WorldModel
from sb3_mbrl.plugins import Registry, Selection
from sb3_mbrl.plugins.kinds import KINDS
from sb3_mbrl.rng import RandomStream


@dataclass(frozen=True)
class Choices:
    """
    The parts that a user chose, as the constructor took them.

    :param owner: the agent's class, for messages
    :param parts: the choice of each kind of part (``"world_model"``, ``"planner"``, ``"imagination"``)
    :param kwargs: the keyword arguments of each kind
    :param functions: the choices of ``reward_fn`` and ``termination_fn``
    :param shared: settings that agent and world model must agree on, given to factories that take them
    :param off: whether the world model would have no influence, so that none is built
    :param latent: whether the algorithm needs a :class:`~sb3_mbrl.contracts.LatentModel`
    :param given: parts that ``load`` was given, which replace those that the checkpoint names
    """

    owner: type
    parts: Mapping[str, Any]
    kwargs: Mapping[str, dict[str, Any]]
    functions: Mapping[str, Any]
    shared: Mapping[str, Any] = field(default_factory=dict)
    off: bool = False
    latent: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """:raises ValueError: for a function that is none, or for a keyword argument that the agent itself gives to parts"""
        own = self.owner.__name__
        for name, choice in self.functions.items():
            check_function_choice(name, choice)
        for kind, kwargs in self.kwargs.items():
            for name in KINDS[kind].given:
                if name in kwargs:
                    remedy = "that is the environment's" if name.endswith("_space") else f"give {name} to {own}"
                    if name in FUNCTIONS and not _takes(self.owner, name):
                        remedy = f"{own} has no use for it"
                    label = KINDS[kind].label
                    raise ValueError(f"{kind}_kwargs has {name!r}, which every {label} is given by {own}: {remedy}")


class Parts(AgentObject):
    """
    The world model, the planner or imagination and the known functions of an agent, and how they were chosen.

    :param choices: the user's choices
    :param registry: the registry that names are looked up in: built-in parts, installed plug-ins, and those of this agent
    :param observation_space: the observation space of the environment
    :param action_space: the action space of the environment
    :param device: the device of the world model
    :param verbose: as in SB3
    """

    def __init__(
        self,
        choices: Choices,
        registry: Registry,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device,
        verbose: int,
    ) -> None:
        self.choices, self.registry = choices, registry
        self.observation_space, self.action_space = observation_space, action_space
        self.device, self.verbose = device, verbose
        self.selections: dict[str, Selection] = {}
        """The chosen part of each kind, not built yet; the world model is missing where it is off"""
        self.world_model: WorldModel | None = None
        self.planner: Planner | None = None
        self.imagination: Imagination | None = None
        self.known = EnvFunctions()
        """The known reward and termination, for which the world model has no heads"""

    @property
    def references(self) -> dict[str, dict[str, str]]:
        """How each part was chosen, in plain strings: enough to build it again."""
        return {kind: dict(selection.reference) for kind, selection in self.selections.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle choices without what a plug-in's record holds: the registry of the other process has its own."""
        selections = {kind: self.registry.as_pickled(selection) for kind, selection in self.selections.items()}
        return {**vars(self), "selections": selections}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.selections = {kind: self.registry.as_unpickled(*pickled) for kind, pickled in state["selections"].items()}

    # ---- choosing

    def choose(self, env: VecEnv | None) -> None:
        """Look up the parts of a new agent, and the known functions of its environment."""
        selection = self._new_world_model()
        if selection is not None:
            self.selections["world_model"] = selection
        for kind in self._others():
            self.selections[kind] = self.registry.resolve(kind, self.choices.parts[kind])
            self.registry.check_supports(self.selections[kind], self.observation_space, self.action_space)
        if selection is None:
            return
        if selection.instance is not None:
            self.known = functions_of_instance(self.choices.functions, selection.instance, self.choices.owner.__name__)
            return
        spaces_ = self.observation_space, self.action_space
        self.known = find_functions(self.choices.functions, self.registry, env, *spaces_, self.verbose)

    def choose_saved(self, state: Mapping[str, Any], pickled: Mapping[str, Any], trusted: Sequence[str] = ()) -> None:
        """
        Look up the parts that an agent was saved with.

        :param state: :meth:`state_dict` of the saved agent
        :param pickled: known functions that are no plain values, by name, as far as they could be unpickled
        :param trusted: the modules, and the parts as ``"module:name"``, that may be imported for this agent
        :raises UnknownPartError: when a part is not available any more
        :raises ValueError: when ``load`` was given a part that does not fit the saved one
        """
        saved = state["references"]
        selection = self._saved_world_model(saved.get("world_model"), trusted)
        if selection is not None:
            self.selections["world_model"] = selection
        for kind in self._others():
            given = self.choices.given.get(kind)
            self.selections[kind] = (
                self.registry.from_reference(kind, saved[kind], trusted)
                if given is None
                else self.registry.resolve(kind, given)
            )
        if selection is None:
            return
        if selection.instance is not None:
            self.known = functions_of_instance(self.choices.functions, selection.instance, self.choices.owner.__name__)
            return
        missing = [name for name, value in state["known"].items() if value == "pickled" and name not in pickled]
        known = None
        if not missing:
            values = {name: pickled[name] if value == "pickled" else value for name, value in state["known"].items()}
            known = EnvFunctions(**{name: restored_function(value) for name, value in values.items()})
        self.known = saved_functions(self.choices.functions, known)

    def _others(self) -> list[str]:
        return [kind for kind in self.choices.parts if kind != "world_model"]

    def _new_world_model(self) -> Selection | None:
        choice = self.choices.parts["world_model"]
        if choice is None or self.choices.off:
            return None
        if isinstance(choice, str) and choice == "auto":
            auto = self.registry.auto_world_model(self.observation_space, self.action_space)
            if auto.selection is None and self.verbose >= 1:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in auto.reasons.items())
                print(f"world_model='auto': no built-in takes these spaces, so the model is off ({reasons})")
            return auto.selection
        selection = self.registry.resolve("world_model", choice)
        self.registry.check_supports(selection, self.observation_space, self.action_space)
        return selection

    def _saved_world_model(self, saved: Mapping[str, str] | None, trusted: Sequence[str]) -> Selection | None:
        given = self.choices.given
        if saved is None:
            if given.get("world_model") is not None:
                raise ValueError(
                    "This agent was saved with its world model off; load(..., world_model=...) cannot switch it on. Load it "
                    "as it is."
                )
            return None
        if "world_model" not in given:
            return self.registry.from_reference("world_model", saved, trusted)
        choice = given["world_model"]
        if choice is None:
            raise ValueError(
                "load(..., world_model=None): the checkpoint holds a world model. Load it as it is; with "
                "load(..., real_ratio=1.0) training uses real rows alone."
            )
        selection = self.registry.resolve("world_model", choice)
        # A factory function's product is known only once it is built; there the names and shapes of the weights decide.
        comparable = "factory" not in (saved["how"], selection.reference["how"])
        if comparable and selection.reference["factory"] != saved["factory"]:
            raise ValueError(
                f"This agent was saved with the world model {saved['name']!r} ({saved['factory']}), and load() was given "
                f"{selection.reference['name']!r} ({selection.reference['factory']}). Weights of one do not fit the other: "
                "load it without world_model=, and start a new agent for another model."
            )
        return selection

    # ---- building

    def build(self, random: RandomStream) -> None:
        """
        Build all parts.

        :param random: the source of initial weights
        """
        try_functions(self.known, self.observation_space, self.action_space)
        self.world_model = self._build_world_model(random, self.known)
        for kind in self._others():
            arguments = [getattr(self, name) for name in KINDS[kind].given]
            setattr(self, kind, self.selections[kind].build(*arguments, **self.choices.kwargs[kind]))

    def learn_instead(self, names: list[str], random: RandomStream) -> None:
        """
        Build a new world model, with heads for known functions that disagree with the data.

        :param names: the names of those functions
        :param random: the source of initial weights
        """
        # Built before anything is assigned, so that after an interruption functions and heads still fit each other.
        known = replace(self.known, **dict.fromkeys(names))
        model = self._build_world_model(random, known)
        self.known, self.world_model = known, model

    def user_gave(self, function: str) -> bool:
        """Tell whether the user gave this known function, alone or inside an instance, instead of ``"auto"``."""
        return self.choices.functions[function] != "auto" or self.selections["world_model"].instance is not None

    def _build_world_model(self, random: RandomStream, known: EnvFunctions) -> WorldModel | None:
        selection, kwargs = self.selections.get("world_model"), self.choices.kwargs["world_model"]
        if self.choices.latent:
            self._check_latent(selection)
        if selection is None:
            return None
        shared = {name: value for name, value in self.choices.shared.items() if selection.takes(name)}
        for name, value in shared.items():
            if kwargs.get(name, value) != value:
                raise ValueError(f"world_model_kwargs has {name!r}: give {name} to {self.choices.owner.__name__}")
        with random.scope(self.device):
            model = selection.build(
                self.observation_space,
                self.action_space,
                reward_fn=known.reward_fn,
                termination_fn=known.termination_fn,
                device=self.device,
                **{**shared, **kwargs},
            )
        if selection.instance is not None:
            self._check_instance(model)
        if self.choices.latent and not isinstance(model, LatentModel):
            self._refuse_other_than_latent()
        return model

    def _check_latent(self, selection: Selection | None) -> None:
        if selection is None:
            self._refuse_other_than_latent()
        elif selection.instance is None:
            factory = selection.factory
            if isinstance(factory, type) and not issubclass(factory, LatentModel):
                self._refuse_other_than_latent()

    def _refuse_other_than_latent(self) -> None:
        raise ValueError(
            f"{self.choices.owner.__name__} learns in the latent states of its world model: leave world_model as it is, or "
            f"give a LatentModel such as a subclass of RSSM or MuZeroModel, not {self.choices.parts['world_model']!r}"
        )

    def _check_instance(self, model: WorldModel) -> None:
        """Check that a model that was built elsewhere fits this agent."""
        for name in ("observation_space", "action_space"):
            own, its = getattr(self, name), getattr(model, name)
            if own != its:
                raise ValueError(
                    f"The world model was built for the {name} {its}, and this agent's is {own}: build it for that one"
                )
        if model.device.type != self.device.type:
            raise ValueError(
                f"The world model is on {model.device}, and this agent on {self.device}: build it with "
                f"device={str(self.device)!r}"
            )
        discount = self.choices.shared.get("gamma")
        if discount is not None and isinstance(model.discount, float) and model.discount != discount:
            raise ValueError(
                f"The world model was built with gamma={model.discount}, and this agent has gamma={discount}: give both the "
                "same"
            )

    # ---- saving

    def pickled_functions(self) -> dict[str, Any]:
        """Return the known functions that have to be pickled: those of plug-ins and users."""
        functions = {name: getattr(self.known, name) for name in FUNCTIONS}
        return {name: value for name, value in functions.items() if callable(plain_function(value))}

    def state_dict(self) -> dict[str, Any]:
        functions = {name: plain_function(getattr(self.known, name)) for name in FUNCTIONS}
        known = {name: "pickled" if callable(value) else value for name, value in functions.items()}
        extra = None if self.world_model is None else self.world_model.extra_state()
        state = {"references": self.references, "known": known, "world_model_extra": extra}
        imagination = {} if self.imagination is None else self.imagination.state_dict()
        return {**state, "imagination": imagination} if imagination else state

    def restore_structure(self, state: Mapping[str, Any]) -> None:
        """Restore the extra state of the world model, before SB3 restores its parameters."""
        if self.world_model is not None and state["world_model_extra"] is not None:
            self.world_model.load_extra_state(state["world_model_extra"])
        same = state["references"].get("imagination") == self.references.get("imagination")
        if self.imagination is not None and same and state.get("imagination"):
            self.imagination.load_state_dict(state["imagination"])


def _takes(owner: type, name: str) -> bool:
    parameters = inspect.signature(owner).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
