"""From what a user writes (``world_model="gp"``) to the parts of an agent, also when it is loaded."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.contracts import EnvFunctions, Imagination, Transitions, WorldModel
from sb3_mbrl.plugins import Registry, Selection, get_registry
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec


class PartsMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Chooses, builds and checks the parts of a model-based agent."""

    world_model: WorldModel | None
    """The world model; ``None``: the class is its base class"""
    imagination: Imagination | None
    registry: Registry
    """Built-in and installed plugins, and those of this agent"""
    _random: RandomStream

    def _choose_parts(
        self,
        *,
        world_model: Any,
        world_model_kwargs: Mapping[str, Any] | None,
        imagination: Any,
        imagination_kwargs: Mapping[str, Any] | None,
        reward_fn: Any,
        termination_fn: Any,
        plugins: Iterable[Any] | None,
    ) -> None:
        """Keep the user's choices; nothing is built yet, since ``load`` has to put the saved ones in place first."""
        for name, function in (("reward_fn", reward_fn), ("termination_fn", termination_fn)):
            if not (function is None or function == "auto" or callable(function)):
                raise ValueError(f"{name}={function!r}: give a function, 'auto' (known for this environment, else learned) or None (learned)")
        self.world_model_class = world_model
        self.world_model_kwargs = dict(world_model_kwargs or {})
        self.imagination_class = imagination
        self.imagination_kwargs = dict(imagination_kwargs or {})
        self.reward_fn, self.termination_fn = reward_fn, termination_fn
        self.plugins = list(plugins or ())

    def _setup_parts(self) -> None:
        """Build everything from the choices; with those of a checkpoint already in place, from these."""
        self.registry = get_registry().with_plugins(self.plugins)
        given = self.__dict__.pop("world_model", None)
        saved = self.__dict__.get("part_references")
        if saved is None:
            self.part_references: dict[str, dict[str, str]] = {}
            self._world_model_selection = self._select_world_model()
            self._known = self._find_known_functions() if self._world_model_selection else EnvFunctions()
            imagination = self.registry.resolve("imagination", self.imagination_class)
            self.part_references["imagination"] = dict(imagination.reference)
            if self._world_model_selection:
                self.part_references["world_model"] = dict(self._world_model_selection.reference)
        else:
            self._world_model_selection = self._select_saved_world_model(given, saved)
            imagination = self.registry.from_reference("imagination", saved["imagination"])
        self.world_model = self._build_world_model()
        self.imagination = imagination.build(**self.imagination_kwargs)

    # ---- choosing

    def _select_world_model(self) -> Selection | None:
        choice = self.world_model_class
        if choice is None or self.real_ratio >= 1.0:  # type: ignore[attr-defined]
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

    def _select_saved_world_model(self, given: Any, saved: Mapping[str, Mapping[str, str]]) -> Selection | None:
        reference = saved.get("world_model")
        if reference is None:
            if given is not None:
                raise ValueError(
                    "This agent was saved with its world model off; load(..., world_model=...) cannot switch it on. Load it as it is."
                )
            return None
        if given is None:
            return self.registry.from_reference("world_model", reference)
        selection = self.registry.resolve("world_model", given)
        if selection.reference["factory"] != reference["factory"]:
            raise ValueError(
                f"This agent was saved with the world model {reference['name']!r} ({reference['factory']}), and load() was given "
                f"{selection.reference['name']!r} ({selection.reference['factory']}). Weights of one do not fit the other: load it "
                "without world_model=, and start a new agent for another model."
            )
        return selection

    def _build_world_model(self) -> WorldModel | None:
        selection = self._world_model_selection
        if selection is None:
            return None
        with self._random.scope(self.device):
            return selection.build(
                self.observation_space,
                self.action_space,
                reward_fn=self._known.reward_fn,
                termination_fn=self._known.termination_fn,
                device=self.device,
                **self.world_model_kwargs,
            )

    # ---- known functions

    def _find_known_functions(self) -> EnvFunctions:
        """What the user gave, else (``"auto"``) what the environment-functions hook knows of this environment."""
        known = EnvFunctions()
        if "auto" in (self.reward_fn, self.termination_fn) and self.env is not None:
            env = _gym_env(self.env)
            known = self.registry.env_functions(env) if env is not None else known
        reward_fn = known.reward_fn if self.reward_fn == "auto" else self.reward_fn
        termination_fn = known.termination_fn if self.termination_fn == "auto" else self.termination_fn
        return EnvFunctions(reward_fn, termination_fn)

    def _check_known_functions(self, rows: Transitions) -> WorldModel:
        """
        Hold known functions against real data.

        A function found by ``"auto"`` that disagrees (a wrapper changed the task) is dropped and learned instead, with a line in the log; one
        that the user gave is an error.

        :return: the world model, built anew where a function was dropped
        """
        assert self.world_model is not None
        wrong = {}
        action = ActionCodec(self.action_space).to_env(rows.action)
        if self._known.termination_fn is not None:
            said = self._known.termination_fn(rows.obs, action, rows.next_obs)
            _check_shape("termination_fn", said, rows)
            bad = (said.float() > 0.5) != (rows.terminated > 0.5)
            # A few rows may lie on a threshold, where the data's float32 and the simulator's float64 part ways.
            if int(bad.sum()) > max(2, 0.1 * float(rows.terminated.sum())):
                wrong["termination_fn"] = bad
        if self._known.reward_fn is not None:
            said = self._known.reward_fn(rows.obs, action, rows.next_obs)
            _check_shape("reward_fn", said, rows)
            bad = (said - rows.reward).abs() > 1e-3 * (1 + rows.reward.abs())
            if int(bad.sum()) > max(2, 0.01 * len(bad)):
                wrong["reward_fn"] = bad
        if not wrong:
            return self.world_model
        for name, bad in wrong.items():
            message = f"{name} disagrees with {int(bad.sum())} of {len(bad)} real transitions (the first: row {int(bad.nonzero()[0])})"
            if getattr(self, name) != "auto" or self.world_model.fitted:
                raise ValueError(
                    f"{message}. It must return what the environment does, for observations as the agent sees them (after wrappers) "
                    f"and actions in the environment's units. Mend it, or pass {name}=None to learn it."
                )
            if self.verbose >= 1:
                print(f"{message}: it is learned instead")
        self._known = EnvFunctions(**{name: None if name in wrong else value for name, value in vars(self._known).items()})
        self.world_model = self._build_world_model()
        assert self.world_model is not None
        return self.world_model


def _check_shape(name: str, value: th.Tensor, rows: Transitions) -> None:
    if not isinstance(value, th.Tensor) or value.shape != rows.reward.shape:
        got = tuple(value.shape) if isinstance(value, th.Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor of shape ({len(rows.reward)},), one value per row; got {got}")


def _gym_env(env: VecEnv) -> gym.Env | None:
    """The first environment of a ``VecEnv`` where it lives in this process, else one made from its specification."""
    envs = getattr(env.unwrapped, "envs", None)
    if envs:
        return envs[0]
    specs = [spec for spec in env.get_attr("spec", indices=0) if spec is not None]
    return gym.make(specs[0]) if specs else None


