"""From what a user writes (``world_model="gp"``) to the parts of an agent, also when it is loaded."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from numbers import Real
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.contracts import EnvFunctions, FitBudget, Transitions, WorldModel, call_known
from sb3_mbrl.envs.wrappers import is_neutral
from sb3_mbrl.plugins import Registry, Selection, get_registry
from sb3_mbrl.plugins.errors import did_you_mean
from sb3_mbrl.plugins.kinds import KINDS
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec

FUNCTIONS = ("reward_fn", "termination_fn")


class PartsMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Chooses, builds and checks the parts of a model-based agent."""

    world_model: WorldModel | None
    """The world model; ``None``: the class is its base class"""
    world_model_kwargs: Any
    """A dictionary, once it is checked"""
    partner: ClassVar[str | None] = "imagination"
    """
    The kind of the part that looks ahead in the world model: ``"imagination"`` or ``"planner"``. An agent has it under this
    name, and the user's choice as ``..._class`` and ``..._kwargs``. ``None``: the algorithm looks ahead by itself.
    """
    plugins: Any
    part_references: dict[str, dict[str, str]]
    """How the parts were chosen: what a checkpoint needs to build them again"""
    registry: Registry
    """Built-in and installed plugins, and those of this agent"""
    _random: RandomStream

    def _choose_parts(
        self,
        *,
        world_model: Any,
        world_model_kwargs: Mapping[str, Any] | None,
        reward_fn: Any,
        termination_fn: Any,
        plugins: Iterable[Any] | None,
        partner: Any = None,
        partner_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the user's choices; nothing is built yet, since ``load`` has to put the saved ones in place first."""
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        if self.partner is not None:
            setattr(self, f"{self.partner}_class", partner)
            setattr(self, f"{self.partner}_kwargs", partner_kwargs)
        self.reward_fn, self.termination_fn = reward_fn, termination_fn
        self.plugins = plugins

    def _check_choices(self) -> None:
        """Done when parts are built, and not in a constructor, since ``load`` sets attributes behind its back."""
        for name in FUNCTIONS:
            function = getattr(self, name)
            if not (function is None or callable(function) or (isinstance(function, str) and function == "auto")):
                raise ValueError(
                    f"{name}={function!r}: give a function, 'auto' (known for this environment, else learned) or None "
                    "(learned)"
                )
        own = type(self).__name__
        for kind in self._kinds():
            setattr(self, f"{kind}_kwargs", _keywords(f"{kind}_kwargs", getattr(self, f"{kind}_kwargs")))
            for name in KINDS[kind].given:
                if name in getattr(self, f"{kind}_kwargs"):
                    remedy = "that is the environment's" if name.endswith("_space") else f"give {name} to {own}"
                    if name in FUNCTIONS and not _takes(type(self), name):
                        remedy = f"{own} has no use for it"
                    label = KINDS[kind].label
                    raise ValueError(f"{kind}_kwargs has {name!r}, which every {label} is given by {own}: {remedy}")
        given = self.plugins
        if given is not None and (isinstance(given, (str, ModuleType)) or not isinstance(given, Iterable)):
            raise TypeError(f"plugins={given!r}: give a list: plugins=[...]")
        self.plugins = list(given or ())

    def _kinds(self) -> list[str]:
        """Of the parts that were chosen."""
        return ["world_model"] if self.partner is None else ["world_model", self.partner]

    def _setup_parts(self) -> RandomStream:
        """
        Build everything from the choices; with those of a checkpoint already in place, from these.

        :return: the source of initial weights
        """
        self._check_choices()
        self.registry = get_registry().with_plugins(self.plugins)
        self.plugins = []  # the registry has them; a list of modules would keep an agent from being deep-copied
        given: dict[str, Any] = {kind: self.__dict__.pop(kind) for kind in self._kinds() if kind in self.__dict__}
        partner = None
        if "part_references" not in self.__dict__:
            self._world_model_selection = self._select_world_model()
            if self.partner is not None:
                partner = self.registry.resolve(self.partner, getattr(self, f"{self.partner}_class"))
                self.registry.check_supports(partner, self.observation_space, self.action_space)
            self._known = self._find_known_functions()
            random = self._random
        else:
            self._world_model_selection = self._select_saved_world_model(given, self.part_references.get("world_model"))
            if self.partner is not None:
                partner = self._select_saved_partner(self.partner, given, self.part_references[self.partner])
            self._known = self._saved_known_functions()
            # The saved weights are about to replace what is drawn now; the saved stream must not notice.
            random = RandomStream(0)
        chosen = zip(self._kinds(), (self._world_model_selection, partner), strict=False)
        self.part_references = {kind: dict(part.reference) for kind, part in chosen if part is not None}
        self.world_model = self._build_world_model(random, self._known)
        if self.partner is not None and partner is not None:
            arguments = [getattr(self, name) for name in KINDS[self.partner].given]
            setattr(self, self.partner, partner.build(*arguments, **getattr(self, f"{self.partner}_kwargs")))
        return random

    # ---- choosing

    def _select_world_model(self) -> Selection | None:
        choice = self.world_model_class
        if choice is None or self._without_imagination():
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

    def _select_saved_world_model(self, given: Mapping[str, Any], saved: Mapping[str, str] | None) -> Selection | None:
        if saved is None:
            if given.get("world_model") is not None:
                raise ValueError(
                    "This agent was saved with its world model off; load(..., world_model=...) cannot switch it on. Load it "
                    "as it is."
                )
            return None
        if "world_model" not in given:
            return self.registry.from_reference("world_model", saved)
        choice = given["world_model"]
        if choice is None:
            raise ValueError(
                "load(..., world_model=None): the checkpoint holds a world model. Load it as it is; with "
                "load(..., real_ratio=1.0) training uses real rows alone."
            )
        selection = self.registry.resolve("world_model", choice)
        # What a function builds is only known once it is built; there the names and shapes of the weights decide.
        comparable = "factory" not in (saved["how"], selection.reference["how"])
        if comparable and selection.reference["factory"] != saved["factory"]:
            raise ValueError(
                f"This agent was saved with the world model {saved['name']!r} ({saved['factory']}), and load() was given "
                f"{selection.reference['name']!r} ({selection.reference['factory']}). Weights of one do not fit the other: "
                "load it without world_model=, and start a new agent for another model."
            )
        self.world_model_class = choice
        if selection.instance is not None:
            self.world_model_kwargs = {}  # those of the class it was once built from
        return selection

    def _without_imagination(self) -> bool:
        """Whether the world model would have no influence."""
        return False

    def _select_saved_partner(self, kind: str, given: Mapping[str, Any], saved: Mapping[str, str]) -> Selection:
        if given.get(kind) is None:
            return self.registry.from_reference(kind, saved)
        setattr(self, f"{kind}_class", given[kind])
        selection = self.registry.resolve(kind, given[kind])
        if selection.instance is not None:
            setattr(self, f"{kind}_kwargs", {})
        return selection

    def _build_world_model(self, random: RandomStream, known: EnvFunctions) -> WorldModel | None:
        selection = self._world_model_selection
        if selection is None:
            return None
        shared = {name: value for name, value in self._shared_settings().items() if selection.takes(name)}
        for name, value in shared.items():
            if self.world_model_kwargs.get(name, value) != value:
                raise ValueError(f"world_model_kwargs has {name!r}: give {name} to {type(self).__name__}")
        with random.scope(self.device):
            model = selection.build(
                self.observation_space,
                self.action_space,
                reward_fn=known.reward_fn,
                termination_fn=known.termination_fn,
                device=self.device,
                **{**shared, **self.world_model_kwargs},
            )
        if selection.instance is not None:
            self._check_instance(model)
        return model

    def _shared_settings(self) -> dict[str, Any]:
        """What the agent and its world model have to agree on: given to factories that have arguments of these names."""
        return {}

    def _check_instance(self, model: WorldModel) -> None:
        """A model that was built elsewhere has to fit this agent."""
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

    # ---- known functions

    def _find_known_functions(self) -> EnvFunctions:
        """What the user gave, else (``"auto"``) what the environment-functions hook knows of this environment."""
        if self._world_model_selection is None:
            return EnvFunctions()
        if self._world_model_selection.instance is not None:
            return self._functions_of_instance(self._world_model_selection.instance)
        known = EnvFunctions()
        if "auto" in (self.reward_fn, self.termination_fn) and self.env is not None:
            with _gym_env(self.env) as env:
                # A VecEnvWrapper that stacks or cuts: the function would read the wrong columns.
                own = (self.observation_space, self.action_space)
                if env is not None and (env.observation_space, env.action_space) == own:
                    known = self.registry.env_functions(env)
        if self.reward_fn == "auto" and known.reward_fn is None and self.verbose >= 1:
            print("reward_fn='auto': nothing is known of this environment's reward, so it is learned")
        reward_fn = known.reward_fn if self.reward_fn == "auto" else self.reward_fn
        termination_fn = known.termination_fn if self.termination_fn == "auto" else self.termination_fn
        return EnvFunctions(reward_fn, termination_fn)

    def _functions_of_instance(self, model: WorldModel) -> EnvFunctions:
        for name in FUNCTIONS:
            if callable(getattr(self, name)) and getattr(self, name) is not getattr(model, name):
                raise ValueError(
                    f"{name} was given to {type(self).__name__}, but the world model is an instance that was built without "
                    f"it: give {name} to {type(model).__name__}(...), or the class instead of an instance"
                )
        return EnvFunctions(model.reward_fn, model.termination_fn)

    def _saved_known_functions(self) -> EnvFunctions:
        """
        Those of the checkpoint; one that was given to ``load`` may take the place of a known one, for which no head was
        learned.
        """
        if self._world_model_selection is None:
            return EnvFunctions()
        if self._world_model_selection.instance is not None:
            return self._functions_of_instance(self._world_model_selection.instance)
        choices = {name: getattr(self, name) for name in FUNCTIONS}
        functions = {name: choice for name, choice in choices.items() if callable(choice)}
        saved = self.__dict__.get("_known")
        if saved is None:
            if not functions:
                raise ValueError(
                    "The known reward or termination function of this checkpoint could not be unpickled (see the warning "
                    "above). Give it again: load(..., reward_fn=...) or load(..., termination_fn=...)."
                )
            return EnvFunctions(**functions)
        for name, choice in choices.items():
            known = getattr(saved, name)
            if callable(choice) and known is None:
                raise ValueError(
                    f"This agent was saved with a learned {name}: load(..., {name}=...) cannot replace it. Start a new agent."
                )
            if choice is None and known is not None:
                raise ValueError(
                    f"This agent was saved with a known {name}: load(..., {name}=None) cannot learn it. Start a new agent."
                )
        return replace(saved, **functions)

    def _check_known_functions(self, rows: Transitions) -> WorldModel:
        """
        Hold known functions against real data.

        A function found by ``"auto"`` that disagrees (a wrapper changed the task) is dropped and learned instead, with a line
        in the log; one that the user gave is an error.

        :return: the world model, which is another one then
        """
        assert self.world_model is not None
        action = ActionCodec(self.action_space).to_env(rows.action)
        seen, wrong = (rows.obs, action, rows.next_obs), {}
        if self._known.termination_fn is not None:
            said = call_known("termination_fn", self._known.termination_fn, seen, len(action)).float()
            bad = said != rows.terminated  # also where it is not a boolean
            # A few rows may lie on a threshold, where the data's float32 and the simulator's float64 part ways.
            if int(bad.sum()) > max(2, 0.1 * float(rows.terminated.sum())):
                wrong["termination_fn"] = bad, said, rows.terminated
        if self._known.reward_fn is not None:
            said = call_known("reward_fn", self._known.reward_fn, seen, len(action)).float()
            bad = ~((said - rows.reward).abs() <= 1e-3 * (1 + rows.reward.abs()))
            if int(bad.sum()) > max(2, 0.01 * len(bad)):
                wrong["reward_fn"] = bad, said, rows.reward
        if not wrong:
            return self.world_model
        assert self._world_model_selection is not None
        for name, (bad, said, real) in wrong.items():
            first = int(bad.nonzero()[0])
            message = (
                f"{name} disagrees with {int(bad.sum())} of {len(bad)} real transitions (the first: row {first}, where it is "
                f"{float(said[first]):.6g} and the environment's {float(real[first]):.6g})"
            )
            if getattr(self, name) != "auto" or self._world_model_selection.instance is not None:
                raise ValueError(
                    f"{message}. It must return what the environment does, for observations as the agent sees them (after "
                    f"wrappers) and actions in the environment's units. Mend it, or pass {name}=None to learn it."
                )
            if self.verbose >= 1:
                print(f"{message}: it is learned instead")
        # Heads are part of the network, so the model starts anew: on all the data there is, since a fit is under way. Built
        # before anything is assigned: interrupted here, functions and heads would no longer fit each other.
        known = replace(self._known, **dict.fromkeys(wrong))
        model = self._build_world_model(self._random, known)
        assert model is not None
        self._known, self.world_model = known, model
        return model


def make_budget(fit_kwargs: Any) -> FitBudget:
    """
    :param fit_kwargs: of :class:`~sb3_mbrl.contracts.FitBudget`, or ``None``
    :raises TypeError: for a name or a type that it does not take
    :raises ValueError: for a value that makes no sense
    """
    given = _keywords("fit_kwargs", fit_kwargs)
    accepted = [field.name for field in fields(FitBudget)]
    for name, value in given.items():
        if name not in accepted:
            raise TypeError(
                f"fit_kwargs does not take {name!r}.{did_you_mean(name, accepted)}\n  fit_kwargs: {', '.join(accepted)}"
            )
        optional = name in ("max_epochs", "max_batches") and value is None
        if not optional and (not isinstance(value, Real) or isinstance(value, bool)):
            raise TypeError(f"fit_kwargs: {name}={value!r} is not a number")
    return FitBudget(**given)


def _keywords(name: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name}={given!r}: give a dictionary of keyword arguments")
    return dict(given or {})


@contextmanager
def _gym_env(env: VecEnv) -> Iterator[gym.Env | None]:
    """
    The first environment of a ``VecEnv`` where it lives in this process, else one made from its specification.

    ``None`` where there is none of Gymnasium's, it is not registered in this process, or wrappers change what it does.
    """
    envs = getattr(env.unwrapped, "envs", None)
    if envs:
        yield envs[0]
        return
    try:
        spec = env.get_attr("spec", indices=0)[0]
    except (AttributeError, NotImplementedError):  # a VecEnv that is not made of Gymnasium's environments
        spec = None
    # Most wrappers cannot be made again from a specification (SB3's Monitor is one), but need not be where they change
    # nothing.
    if spec is None or not all(
        isinstance(wrapper, type) and is_neutral(wrapper)
        for wrapper in (load_env_creator(wrapper.entry_point) for wrapper in spec.additional_wrappers)
    ):
        yield None
        return
    try:
        made = gym.make(replace(spec, additional_wrappers=()), render_mode=None)
    except Exception:  # whatever somebody's environment raises: it runs elsewhere, and what is known of it stays unknown here
        yield None
        return
    try:
        yield made
    finally:
        made.close()


def _takes(kind: type, name: str) -> bool:
    parameters = inspect.signature(kind).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
