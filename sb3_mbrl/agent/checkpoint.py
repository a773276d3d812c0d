"""What a checkpoint holds, and what it does not.

=========================  =====================================================================================
in the zip                 as
=========================  =====================================================================================
policy, its optimisers     SB3's entries
world model's weights,     ``world_model`` (the input and target normalisers are among its buffers)
normalisers
its optimiser              ``world_model.optimizer``
what shapes do not tell    ``world_model_extra``: fit counters, stored data
                           (:meth:`~sb3_mbrl.contracts.WorldModel.extra_state`)
how parts were chosen      ``part_references`` (name, class, distribution, version) and their keyword arguments
known functions            pickled (``reward_fn``, ``termination_fn``, and those that were found for the environment)
schedules, verdicts        when it was last fitted, on how many rows, whether the model is trusted
random states              the model's own stream
plugins                    what they put into the ``extra`` of ``sb3_mbrl_on_save``
=========================  =====================================================================================

Not in the zip: the replay buffer (SB3's rule: ``save_replay_buffer``), plugin objects (give them again:
``load(..., plugins=[...])``), a world model or an imagination given as an instance (give it again), snapshots of an oracle,
and the imagined buffer.

**The imagined buffer's rule:** its rows follow from model, policy and replay buffer, so it is imagined anew, as many rows as
its age limit would have kept, at the first ``train`` that finds enough real rows (``learning_starts``). Until the replay
buffer is loaded or refilled, training uses real rows alone. ``save(..., include=["imagined"])`` keeps the very rows.
"""

import io
import pathlib
import pickle
from typing import TYPE_CHECKING, Any, ClassVar, Self

from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.agent.parts import FUNCTIONS
from sb3_mbrl.agent.zip_file import (
    Guard,
    _unpickle_guard,  # noqa: F401 - by this name files that were saved before zips.py look for it
    check_names,
    name_what_cannot_be_pickled,
    qualified_name,
    reading_guarded,
    refuse_model_free,
    same_json,
    saved_attributes,
    write_beside,
)
from sb3_mbrl.contracts import EnvFunctions

NOT_SAVED = [
    "world_model",
    "imagination",
    "planner",
    "imagined",
    "registry",
    "plugins",
    "_world_model_selection",
    "_side",
    "_snapshot",
    "_statistics",
    "_progress_bar",
]

EXTRA = ("world_model_extra", "plugin_extra", "saved_by", "_guard")
"""In the zip, not on the agent"""

REQUIRED = ("part_references", "world_model_kwargs", "_known", *EXTRA)
"""Without them the saved weights find no model to go into"""


class CheckpointMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """``save`` and ``load`` of a model-based agent."""

    _model_free_class: ClassVar[type[OffPolicyAlgorithm]]
    """The base class without a model"""
    replay_buffer: ReplayBuffer | None
    _judge_again: bool = False
    """The world model's weights were changed from outside since it was judged"""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *NOT_SAVED]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        if self.world_model is not None:
            state_dicts = [*state_dicts, "world_model"]
            if self.world_model.optimizer is not None:
                state_dicts.append("world_model.optimizer")
        return state_dicts, variables

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """
        As SB3's; see :mod:`sb3_mbrl.agent.checkpoint` for what is saved. A file of this name stays whole until the new
        one is.

        :raises ValueError: when ``exclude`` names what ``load`` cannot do without
        """
        exclude = list(exclude or ())
        for name in REQUIRED:
            if name in exclude:
                raise ValueError(f"save(exclude=[{name!r}]): the agent could not be loaded again; leave it out of exclude")
        plugin_extra: dict[str, Any] = {}
        self.registry.hook.sb3_mbrl_on_save(agent=self, extra=plugin_extra)
        choices = {f"{kind}_class": getattr(self, f"{kind}_class") for kind in self.part_references}
        try:
            self.plugin_extra = plugin_extra
            base, algorithm = qualified_name(self._model_free_class), _algorithm(type(self))
            self.saved_by = {"class": type(self).__name__, "base": base, "algorithm": algorithm}
            self._guard = Guard(type(self).__name__)
            self.world_model_extra = None if self.world_model is None else self.world_model.extra_state()
            for kind, reference in self.part_references.items():
                # Instances are not stored, and classes not pickled: where one cannot be imported any more, the reference has
                # better words for it than a failed unpickling.
                if not (choices[f"{kind}_class"] is None or isinstance(choices[f"{kind}_class"], str)):
                    setattr(self, f"{kind}_class", reference["factory"])
            if isinstance(path, (str, pathlib.Path)):
                target = pathlib.Path(path)
                if target.suffix == "":  # SB3's rule
                    target = pathlib.Path(f"{path}.zip")
                if target.is_file() or not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_beside(target, lambda beside: self._write(beside, exclude, include))
                    return
            super().save(path, exclude=exclude, include=include)
        except Exception as error:
            name_what_cannot_be_pickled(error, {name: getattr(self, name) for name in EXTRA if hasattr(self, name)})
            raise
        finally:
            self.__dict__.update(choices)
            # Stored data may be large: it is not kept twice.
            for name in EXTRA:
                self.__dict__.pop(name, None)

    def _write(self, path: pathlib.Path, exclude: Any, include: Any) -> None:
        with path.open("wb") as file:  # SB3 leaves its own open when it fails
            super().save(file, exclude=exclude, include=include)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: Any = None,
        device: Any = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """
        As SB3's.

        :param path: of the zip
        :param kwargs: attributes to change; ``plugins=[...]`` for plugins that are not installed, ``world_model=...`` and
            ``imagination=...`` for what was given as an instance, ``reward_fn=...`` and ``termination_fn=...`` for known
            functions that cannot be unpickled here
        :raises ValueError: for a checkpoint of a model-free class, or of another world model
        :raises UnknownPartError: when a plugin is missing; the message says which to install
        """
        saved = saved_attributes(path)
        if {"planning", "kappa"} <= set(saved):
            raise ValueError(f"{path} was saved by DynaQ, not by {cls.__name__}: load it with DynaQ.load(path)")
        if "part_references" not in saved:
            refuse_model_free(cls, path, saved)
        check_names(cls, "load", kwargs, saved)
        saved_by = saved.get("saved_by")
        if saved_by is not None and saved_by["base"] != qualified_name(cls._model_free_class):
            right, own = saved_by["class"], qualified_name(cls._model_free_class)
            base = saved_by["base"].rpartition(".")[2]
            named = f"model_based({base})" if right.startswith("ModelBased") else right
            raise ValueError(
                f"{path} was saved by {right}, not by {cls.__name__}: load it with {named}.load(path). (That one is made of "
                f"{saved_by['base']}, this one of {own}.)"
            )
        if saved_by is not None and saved_by.get("algorithm", _algorithm(cls)) != _algorithm(cls):
            raise ValueError(f"{path} was saved by {saved_by['class']}, not by {cls.__name__}: load it with that class")
        ratio = kwargs.get("real_ratio")
        if isinstance(ratio, (int, float)) and ratio < 1.0 <= saved.get("real_ratio", 0.0):
            raise ValueError(
                f"load(..., real_ratio={ratio}): this agent was saved with real_ratio=1, so without a world model. To "
                f"switch it on: {cls.__name__}.from_model_free({cls.__name__}.load(path).to_model_free(), real_ratio={ratio})"
            )
        if "world_model_kwargs" in kwargs and not same_json(kwargs["world_model_kwargs"], saved.get("world_model_kwargs")):
            raise ValueError(
                f"load(..., world_model_kwargs={kwargs['world_model_kwargs']!r}): the saved weights belong to a "
                "world model that was built with its own world_model_kwargs. Leave them out, and start a new agent for "
                "another model."
            )
        functions = {name: kwargs[name] for name in FUNCTIONS if callable(kwargs.get(name))}
        if functions and set(functions) == {name for name in FUNCTIONS if (saved.get("_known") or {}).get(name) is not None}:
            # The saved ones are not even unpickled: that their module is missing may be why they are given again.
            custom_objects = {"_known": EnvFunctions(**functions), **functions, **(custom_objects or {})}
        try:
            with reading_guarded():
                agent = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except ImportError as error:
            error.add_note(
                f"{path} pickles an object of this module. Make it importable; if it is a known reward or termination "
                "function, give what was known again instead: load(..., reward_fn=..., termination_fn=...)"
            )
            raise
        for name in ("saved_by", "_guard"):
            agent.__dict__.pop(name, None)
        # SB3 has put the weights back by set_parameters(), but the saved verdict is about these very weights.
        agent._judge_again = saved.get("_judge_again", False)
        agent.registry.hook.sb3_mbrl_on_load(agent=agent, extra=agent.__dict__.pop("plugin_extra", {}))
        return agent

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto") -> None:
        """As SB3's. Before the next imagination the world model is judged anew, since its weights may be others now."""
        if self.__dict__.pop("_without_model", False):
            # The parameters of a model-free agent: the world model is new.
            own = {name: value for name, value in self.get_parameters().items() if name.startswith("world_model")}
            load_path_or_dict = {**load_path_or_dict, **own}
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except ValueError as error:
            named = load_path_or_dict if isinstance(load_path_or_dict, dict) else ()
            if "do not match" in str(error) and "world_model" not in named:
                error.add_note(
                    "Parameters of a model-free class lack the world model; exact_match=False keeps this agent's own"
                )
            raise
        self._judge_again = True

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        As SB3's. A buffer that does not fit leaves the one there is in place.

        :raises ValueError: for a file that holds no replay buffer, or one of other spaces or another number of environments
        """
        before = self.__dict__.get("replay_buffer")  # a user may have deleted it, to make room
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            found = self.replay_buffer
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no replay buffer {path}") from error
        except (AssertionError, pickle.UnpicklingError, EOFError) as error:  # the first is SB3's word for something else
            raise ValueError(f"{path} is not a replay buffer that was saved with save_replay_buffer(): {error!r}") from error
        finally:
            self.replay_buffer = before
        self._take_replay_buffer(found)

    def _take_replay_buffer(self, buffer: Any) -> None:
        """Go on with a buffer, if it fits."""
        own = {"observation_space": self.observation_space, "action_space": self.action_space, "n_envs": self.n_envs}
        for what, value in own.items():
            if getattr(buffer, what) != value:
                raise ValueError(f"The replay buffer was recorded with {what} {getattr(buffer, what)}; this agent has {value}")
        dictionaries = isinstance(self.observation_space, spaces.Dict)
        if isinstance(buffer, DictReplayBuffer) != dictionaries:
            wanted = "DictReplayBuffer" if dictionaries else "ReplayBuffer"
            raise ValueError(f"This agent needs a {wanted} (or a subclass), not a {type(buffer).__name__}")
        for kind in (HerReplayBuffer, NStepReplayBuffer):
            if self.replay_buffer is not None and isinstance(buffer, kind) != isinstance(self.replay_buffer, kind):
                raise ValueError(
                    f"The replay buffer is a {type(buffer).__name__}, and this agent was made for a "
                    f"{type(self.replay_buffer).__name__} (replay_buffer_class, n_steps), which samples something else"
                )
        buffer.device = self.device
        if isinstance(buffer, HerReplayBuffer):
            buffer.env = self.env  # whose compute_reward relabels
        self.replay_buffer = buffer

    def _restore_extra(self) -> None:
        """Give the world model back what its parameters do not tell, before SB3 puts the parameters back."""
        extra = self.__dict__.pop("world_model_extra", None)
        if extra is not None and self.world_model is not None:
            self.world_model.load_extra_state(extra)


def _algorithm(kind: type) -> str | None:
    """What a class without a model-free counterpart learns by; classes of users are of the algorithm that they extend."""
    if kind._model_free_class is not OffPolicyAlgorithm:  # type: ignore[attr-defined]
        return None
    return next((one.__name__ for one in kind.__mro__ if one.__module__.startswith("sb3_mbrl.")), None)
