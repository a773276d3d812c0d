"""The base classes of all agents: every method of SB3 that a model-based agent overrides, in the order of a run.

:class:`ModelBasedAgent` overrides what any algorithm of SB3 has, :class:`OffPolicyAgent` what off-policy algorithms add. Both
stand to the left of an algorithm of SB3, as in ``class PETS(OffPolicyAgent, OffPolicyAlgorithm)``. The methods are a few lines
each, since the work is done by objects that the agent has:

===============  ==========================================================================================================
``parts``        the world model, the planner or imagination, the known functions, and how they were chosen
``random``       the private random stream of everything that is the model's
``streams``      the random streams that the agent shares with SB3, for a run that continues after ``load``
``recorder``     scalars, wall time per phase, the text of the progress bar
``trainer``      when to fit the world model, fitting, judging, trusting; ``None`` where it learns together with the policy
``real``         checks of real steps, and the side store of the replay buffer
``acting``       the policy state in training; ``None`` for policies without one
===============  ==========================================================================================================

Hyperparameters are attributes of the agent, as in SB3, so that ``load(..., fit_freq=100)`` works; counters and verdicts belong
to the objects. An algorithm adds its ``__init__``, ``_build`` and ``train``.
"""

import inspect
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.agent import buffer_files, checkpoint
from sb3_mbrl.agent.estimate import Estimate, describe_pace, estimate, measure
from sb3_mbrl.agent.known_functions import FUNCTIONS, disagreements, restored_function
from sb3_mbrl.agent.model_trainer import ModelTrainer
from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.agent.parts import Choices, Parts
from sb3_mbrl.agent.progress import ProgressLines, TimeLeft, TrainingBar
from sb3_mbrl.agent.real_steps import RealSteps, cut_off_episodes
from sb3_mbrl.agent.recorder import Recorder, leaves, writes
from sb3_mbrl.agent.settings import check_forms, check_values, keyword_arguments
from sb3_mbrl.agent.stateful import StatefulActing
from sb3_mbrl.agent.streams import SharedStreams
from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.checks import did_you_mean, user_stacklevel
from sb3_mbrl.contracts import Data, FitBudget, UnsupportedSpace, WorldModel
from sb3_mbrl.hyperparams import load_preset, with_overrides
from sb3_mbrl.imagination.starts import replay_starts
from sb3_mbrl.plugins import Registry, get_registry
from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.rng import RandomStream, derive_seed
from sb3_mbrl.spaces import (
    ActionCodec,
    left_behind_by_sb3,
    unknown_to_sb3,
    unusable_actions,
    unusable_observations,
    whole_numbers,
)
from sb3_mbrl.trees import State


class ModelBasedAgent(BaseAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Overrides of the methods that every algorithm of SB3 has. See the module's docstring for the objects."""

    part_kinds: ClassVar[tuple[str, ...]] = ("world_model",)
    """
    The kinds of parts that a user chooses. The choice of each is the attribute ``<kind>_class``, and its keyword arguments are
    ``<kind>_kwargs``.
    """
    needs_latent_model: ClassVar[bool] = False
    """Whether the world model must be a :class:`~sb3_mbrl.contracts.LatentModel`"""
    loads_optimizer_kwargs: ClassVar[bool] = False
    """Whether ``load`` may be given other ``optimizer_kwargs`` than the saved ones"""
    fits_model: ClassVar[bool] = True
    """Whether the world model is fitted apart from the policy, by a :class:`ModelTrainer`"""
    needs_decode: ClassVar[bool] = False
    """Whether the learner cannot do without decoded observations"""
    object_names: ClassVar[tuple[str, ...]] = ("parts", "random", "streams", "recorder", "trainer")
    """The attributes that hold the objects an agent has; their states are saved, they themselves are not"""
    preset_file: ClassVar[str | None] = None
    """The file of presets in ``sb3_mbrl/hyperparams``, where there is one"""
    model_free_class: ClassVar[type[BaseAlgorithm]]
    """The algorithm without a world model"""
    when_untrusted: ClassVar[str] = "Imagination waits until it is better; until then training uses real data alone."
    """The consequence of a world model that is not trusted, for the warning"""

    parts: Parts
    random: RandomStream
    streams: SharedStreams
    recorder: Recorder
    trainer: ModelTrainer | None
    world_model_class: Any
    world_model_kwargs: Any
    reward_fn: Any
    termination_fn: Any
    plugins: Any
    fit_freq: int
    fit_kwargs: Any

    # ------------------------------------------------------------------------------------------------ parts, read only

    @property
    def world_model(self) -> WorldModel | None:
        """The world model; ``None``: the class is its base class"""
        parts = self.__dict__.get("parts")  # asked for at every step, and before there are parts
        return None if parts is None else parts.world_model

    @property
    def registry(self) -> Registry:
        """Built-in parts, installed plug-ins, and the plug-ins of this agent"""
        return self.parts.registry

    @property
    def part_references(self) -> dict[str, dict[str, str]]:
        """How the parts were chosen, in plain strings"""
        return self.parts.references

    @property
    def phase_seconds(self) -> dict[str, float]:
        """The wall time spent in each phase so far"""
        return self.recorder.phase_seconds

    @classmethod
    def preset(cls, name: str, /, **overrides: Any) -> dict[str, Any]:
        """
        Return settings by name, as keyword arguments: ``MBPO("MlpPolicy", "Hopper-v5", **MBPO.preset("Hopper-v5"))``.

        :param name: a Gymnasium id, or another name that has settings
        :param overrides: arguments of the constructor to change, such as ``world_model=None`` for the control. Keyword
            arguments of a part (``fit_kwargs={"patience": 3}``) are merged with the preset's; where another world model,
            planner or imagination is chosen, the preset's keyword arguments of that part are left out
        :raises KeyError: when there are none; the message lists the names that have some
        :raises TypeError: for an override that the constructor does not take
        """
        if cls.preset_file is None:
            raise KeyError(f"There are no presets of {cls.__name__}")
        parameters = inspect.signature(cls).parameters
        for key in overrides:
            if key not in parameters or key.startswith("_"):
                raise TypeError(
                    f"{cls.__name__}.preset({name!r}, {key}=...): the constructor has no such argument."
                    f"{did_you_mean(key, parameters)}"
                )
        defaults = {key: parameter.default for key, parameter in parameters.items()}
        return with_overrides(load_preset(cls.preset_file, name).kwargs, overrides, defaults)[0]

    # ------------------------------------------------------------------------------------------------ setup

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.object_names:
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{name}: every model-based agent has an attribute of this name "
                    f"({', '.join(cls.object_names)}). Rename yours."
                )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As SB3's, whose refusals of spaces do not all name the space."""
        if isinstance(env, (gym.Env, VecEnv)):
            refuse_by_name(env.observation_space, env.action_space)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_spaces(self) -> None:
        """:raises UnsupportedSpace: for spaces with which learning would fail; algorithms extend it"""
        for what, reason in (
            ("observations", unusable_observations(self.observation_space)),
            ("actions", unusable_actions(self.action_space)),
        ):
            if reason:
                raise UnsupportedSpace(f"{type(self).__name__} cannot learn from these {what}: {reason}")

    def _setup_model(self) -> None:
        saved = checkpoint.take_saved(self)
        if self.world_model_class is not None and not self._model_is_off():
            check_forms(vars(self), type(self).__name__)
        self._check_spaces()
        given = {kind: self.__dict__.pop(kind) for kind in self.part_kinds if kind in self.__dict__}
        super()._setup_model()
        self._refuse_taken_names()
        self.random, self.recorder = RandomStream(self.seed), Recorder()
        self.streams = SharedStreams(self.action_space, self.policy, self.device, self.get_env)
        self._make_objects()
        self._check_hyperparameters()
        self.parts = self._choose_parts(given, saved)
        self.parts.build(self.random)
        if self.world_model is not None:
            self._check_settings_of_sb3()
        self._build()
        self._convert_actions()
        if saved is not None:
            checkpoint.restore_structure(self.parts, saved["parts"])
        if saved is None and self.world_model is not None:
            self._say_pace()
        self.registry.hook.sb3_mbrl_on_setup(agent=self)

    def _make_objects(self) -> None:
        """Create the objects that need nothing but spaces."""
        self.trainer = None
        if self.fits_model:
            shared = self.random, self.recorder, self.when_untrusted, self.needs_decode
            self.trainer = ModelTrainer(self.observation_space, *shared)

    def _say_pace(self) -> None:
        """Say how many updates per real step several environments make; algorithms with updates do."""

    def _check_hyperparameters(self) -> None:
        """
        Check the user's settings.

        Called from ``_setup_model`` and not in constructors, since ``load`` sets attributes behind their back. Algorithms
        extend it.
        """
        for kind in self.part_kinds:
            name = f"{kind}_kwargs"
            setattr(self, name, keyword_arguments(name, getattr(self, name)))
        if self.fits_model:
            freq = self.fit_freq
            if not isinstance(freq, Integral) or isinstance(freq, bool) or freq < 1:
                raise ValueError(f"fit_freq={freq!r}: give the real environment steps between two fits, a whole number from 1")
            make_budget(self.fit_kwargs)
        given = self.plugins
        if given is not None and (isinstance(given, (str, ModuleType)) or not isinstance(given, Iterable)):
            raise TypeError(f"plugins={given!r}: give a list: plugins=[...]")

    def _check_settings_of_sb3(self) -> None:
        """
        Check settings that SB3 takes as they are, where there is a world model.

        :raises ValueError: for a value with which learning would fail in the middle, or learn nothing
        """

    def _choose_parts(self, given: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Parts:
        """
        Choose the parts: from the settings of a new agent, or from those that a saved one had.

        :param given: parts that ``load`` was given
        :param saved: the state in the checkpoint
        """
        for name in FUNCTIONS:
            setattr(self, name, restored_function(getattr(self, name)))
        registry = get_registry().with_plugins(list(self.plugins or ()))
        self.plugins = []  # the registry has them; a list of modules would keep an agent from being deep-copied
        choices = Choices(
            owner=type(self),
            parts={kind: getattr(self, f"{kind}_class") for kind in self.part_kinds},
            kwargs={kind: getattr(self, f"{kind}_kwargs") for kind in self.part_kinds},
            functions={name: getattr(self, name) for name in FUNCTIONS},
            shared=self._shared_settings(),
            off=self._model_is_off(),
            latent=self.needs_latent_model,
            given=given,
        )
        parts = Parts(choices, registry, self.observation_space, self.action_space, self.device, self.verbose)
        if saved is None:
            parts.choose(self.env)
            return parts
        trusted = self.__dict__.pop(checkpoint.TRUSTED, ())
        parts.choose_saved(saved["parts"], self.__dict__.pop("known_functions", {}), trusted)
        for kind, part in given.items():
            if part is not None:
                setattr(self, f"{kind}_class", part)
                if parts.selections[kind].instance is not None:
                    getattr(self, f"{kind}_kwargs").clear()  # those of the class that the saved part was built from
        return parts

    def _shared_settings(self) -> dict[str, Any]:
        """Settings that the agent and its world model must agree on."""
        return {}

    def _model_is_off(self) -> bool:
        """Whether the world model would have no influence, so that none is built."""
        return False

    def _build(self) -> None:
        """Build what the algorithm needs on top of its parts. Saved weights and counters are put back afterwards."""

    def _convert_actions(self) -> None:
        """Give the environment members of its action space, where SB3 does not."""

    def _refuse_taken_names(self) -> None:
        """:raises TypeError: when the wrapped class has an attribute of a name that is needed here"""
        for name in self.object_names:
            value = vars(self).get(name)
            if value is not None and not isinstance(value, (AgentObject, RandomStream)):
                raise TypeError(
                    f"{self.model_free_class.__name__} has an attribute {name!r} of its own, which every model-based agent "
                    "needs: rename it"
                )

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the private stream of the world model starts anew too."""
        super().set_random_seed(seed)
        if seed is not None and "random" in vars(self):
            self.random.restart(seed)

    # ------------------------------------------------------------------------------------------------ learn

    def set_logger(self, logger: Logger) -> None:
        """As SB3's."""
        super().set_logger(logger)
        self.recorder.logger = logger

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        shows = TrainingBar() if progress_bar else ProgressLines() if self.verbose >= 1 else None
        if shows is None or self.world_model is None:
            result = super()._init_callback(callback, progress_bar)
        else:
            if isinstance(callback, list):
                callback = CallbackList(callback)
            if not isinstance(callback, BaseCallback):
                callback = ConvertCallback(callback)
            bars = any(isinstance(one, (ProgressBarCallback, ProgressLines)) for one in leaves(callback))
            result = super()._init_callback(callback if bars else CallbackList([callback, shows]))
        self.recorder.watch(result)
        return result

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        # Without a world model the class is its base class, whose `load` leaves these streams alone.
        if reset_num_timesteps or self.world_model is None:
            self.streams.drop()
        else:
            self.streams.put_back()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self.recorder.logger = self._logger
        if reset_num_timesteps:
            self._restart_clock()
        return result

    def _restart_clock(self) -> None:
        """Count real steps anew; what was learned stays."""
        if self.trainer is not None:
            self.trainer.restart_clock()

    # ------------------------------------------------------------------------------------------------ save and load

    def __getstate__(self) -> dict[str, Any]:
        """
        Pickle the whole agent, as SB3's can be: environment, replay buffer and random streams included. A logger with open
        files or a terminal stays behind; ``learn`` makes another.
        """
        return {name: value for name, value in vars(self).items() if name != "_logger" or not writes(value)}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *self.object_names]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        if self.world_model is not None:
            state_dicts = [*state_dicts, "world_model"]
            if self.world_model.optimizer is not None:
                state_dicts.append("world_model.optimizer")
        return state_dicts, variables

    def save(self, path: Any, exclude: Any = None, include: Any = None, safe: bool = False) -> None:
        """
        As SB3's; see :mod:`sb3_mbrl.agent.checkpoint` for what is saved. A file of this name stays whole until the new one is.

        :param safe: whether to save spaces, schedules and the like as JSON, not as pickles: ``load(..., safe=True)`` reads
            such files
        :raises ValueError: when ``exclude`` names something that ``load`` needs
        :raises TypeError: when the state of a part is no plain value, or with ``safe`` anything can only be pickled; the
            message names it
        """
        checkpoint.save(self, super().save, path, exclude, include, safe)

    @classmethod
    def load(
        cls,
        path: Any,
        env: Any = None,
        device: Any = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe: bool = False,
        trust: Iterable[Any] = (),
        **kwargs: Any,
    ) -> Self:
        """
        As SB3's. Unless ``safe`` is true, loading a file can run any code that its author put in: that is SB3's format.

        :param path: the path of the zip, or an open file
        :param safe: whether to refuse a file in which anything is pickled
        :param trust: modules, ``"module:name"`` texts, classes and functions that the file may name as its parts, although
            they are neither registered nor imported yet
        :param kwargs: attributes to change; ``plugins=[...]`` for plug-ins that are not installed, ``world_model=...``,
            ``planner=...`` and ``imagination=...`` for parts that were given as instances, ``reward_fn=...`` and
            ``termination_fn=...`` for known functions that cannot be unpickled here
        :raises ValueError: for a checkpoint of a model-free class, of another world model, or of an older version; for a
            damaged one; with ``safe`` for one that holds pickles
        :raises UnknownPartError: when a plug-in is missing, or a part is not trusted; the message says what to do
        """
        saved = checkpoint.check(cls, path, kwargs)
        load = partial(super().load, path, env, device, print_system_info=print_system_info, force_reset=force_reset)
        return checkpoint.load(cls, load, path, saved, custom_objects, kwargs, safe, trust)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto") -> None:
        """As SB3's. The world model is judged anew before the next imagination, since its weights may be others now."""
        checkpoint.set_parameters(self, super().set_parameters, load_path_or_dict, exact_match, device)
        if self.trainer is not None:
            self.trainer.judge_again = True


class UpdateRatioWarning(UserWarning):
    """The line that says how many updates per real step several environments make."""


class OffPolicyAgent(ModelBasedAgent, OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Overrides of the methods that off-policy algorithms of SB3 add."""

    object_names = (*ModelBasedAgent.object_names, "real", "acting")

    makes_updates: ClassVar[bool] = True
    """Whether ``train`` makes ``gradient_steps`` updates of the policy"""

    real: RealSteps
    acting: StatefulActing | None
    replay_buffer: ReplayBuffer | None
    _last_obs: Any

    # ------------------------------------------------------------------------------------------------ setup

    def _make_objects(self) -> None:
        super()._make_objects()
        self.real, self.acting = RealSteps(self.observation_space), None

    def _convert_actions(self) -> None:
        """
        Give the environment members of its action space, in training, in ``predict`` and in the replay buffer. Where they are
        whole numbers, SB3 gives it fractions, and its replay buffer cuts scaled actions off to -1, 0 and 1.
        """
        if self.world_model is None and whole_numbers(self.action_space):
            warnings.warn(
                f"The actions {self.action_space} are whole numbers. Without a world model the class is that of "
                "Stable-Baselines3, which gives fractions to the environment: round them there, or use Discrete or "
                "MultiDiscrete actions.",
                stacklevel=4,
            )
        if not self._converts_actions:
            return
        codec = ActionCodec(self.action_space)  # its methods replace those by which SB3's policies convert actions
        for name, convert in (("scale_action", codec.scaled), ("unscale_action", codec.unscaled)):
            setattr(self.policy, name, convert)
        if self.replay_buffer is not None:
            self.replay_buffer.actions = self.replay_buffer.actions.astype(np.float32)

    @property
    def _converts_actions(self) -> bool:
        """Whether actions are converted by us, since SB3's own results are no members of the space"""
        return self.world_model is not None and left_behind_by_sb3(self.action_space)

    def _check_settings_of_sb3(self) -> None:
        self.__dict__.update(check_values(self.__dict__))

    def _act_by(self, policy: StatefulPolicy) -> None:
        """Act with a policy that has a state; actions come from :meth:`_decide`."""
        policy.set_seed(derive_seed(self.seed))
        self.acting = StatefulActing(self._decide, self.n_envs, self.device, type(self).__name__)

    def _decide(self, obs: Any, state: Any, is_first: th.Tensor, deterministic: bool) -> tuple[th.Tensor, Any]:
        """
        Choose actions in training.

        :param obs: raw, ``(n_envs, ...)``
        :param state: the policy state, or ``None``
        :param is_first: ``(n_envs,)``: which environments begin an episode
        :return: scaled actions ``(n_envs, A)``, and the new policy state
        """
        raise NotImplementedError(f"{type(self).__name__} has a policy without a state")

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the private streams of world model and policy start anew too."""
        super().set_random_seed(seed)
        if seed is not None and isinstance(vars(self).get("policy"), StatefulPolicy):
            self.policy.set_seed(derive_seed(seed))

    # ------------------------------------------------------------------------------------------------ learn

    def _checks_real_steps(self) -> bool:
        """Whether real steps are checked. Without a world model the class is its base class to the last bit."""
        return self.world_model is not None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        before, last = self._last_obs, self._last_original_obs
        resumed = self.world_model is not None and self.streams.waiting and not reset_num_timesteps
        if self.world_model is not None and (reset_num_timesteps or before is None):
            # SB3 is about to reset the environment: the next row does not follow from the newest.
            self._cut_off_episodes()
        self.real.note_statistics(self._vec_normalize_env if resumed else None)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resumed and before is None and self.verbose >= 1:
            print(
                f"The saved run continues after {self.num_timesteps} steps: weights, verdicts and random streams are its own. "
                "The environments begin new episodes, since their state was not saved (see docs/checkpoints.md)."
            )
        if resumed and self._vec_normalize_env is not None:
            if before is None:
                self._last_obs = self.real.counted_once(self._vec_normalize_env, last)
            else:
                self.real.continue_returns(self._vec_normalize_env)
        if self.world_model is not None:
            self._announce(result[0])
        if self._checks_real_steps():
            normalising = self._vec_normalize_env
            first = self._last_obs if normalising is None else normalising.get_original_obs()
            self.real.check_reset(first, self.n_envs, self.num_timesteps)
        self._take_snapshot()
        if self.trainer is not None and self.world_model is not None:
            self._first_fit()
        if self.acting is not None:
            self.acting.normalised = self._vec_normalize_env is not None
            if self._last_obs is not before:  # the environments were reset
                self.acting.forget(self.n_envs)
        return result

    def _announce(self, total_timesteps: int) -> None:
        """Say before the first real step, and before a first fit, what the run will cost, and begin to show progress."""
        self._say_pace()
        progress = self.recorder.progress
        known = None
        if self.verbose >= 1 or isinstance(progress, (TrainingBar, ProgressLines)):
            first = self.recorder.costs is None
            if self.verbose >= 1 and first:
                print("Measuring how long updates take here ...", flush=True)
            known = self.estimate(total_timesteps)
            if self.verbose >= 1 and first:
                print("\n  ".join([f"Estimate of {type(self).__name__}:", *known.lines()]), flush=True)
        if isinstance(progress, (TrainingBar, ProgressLines)):
            timing = self.learning_starts, known, partial(self.recorder.seconds, "fit")
            progress.begin(TimeLeft(total_timesteps, self.num_timesteps, *timing))

    def _say_pace(self) -> None:
        """Say once how many updates per real step several environments make."""
        pace = describe_pace(self)
        if pace is not None and pace not in self.recorder.said:
            self.recorder.said.add(pace)
            warnings.warn(pace, UpdateRatioWarning, stacklevel=user_stacklevel())

    def estimate(self, total_timesteps: int) -> Estimate:
        """
        Estimate what ``learn(total_timesteps)`` costs: updates, seconds of each in a trial, memory of the buffers.

        The trial is on a copy that learns from random rows, once per agent: it takes no step of the environment, and leaves
        the agent and all random streams as they are. ``print("\\n".join(agent.estimate(10_000).lines()))`` shows the result;
        ``learn`` does with ``verbose=1``.

        :param total_timesteps: the number of real steps at the end of the run
        """
        if self.recorder.costs is None:
            self.recorder.costs = measure(self)
        return estimate(self, total_timesteps, self.recorder.costs)

    def trial_update(self, batch_size: int) -> None:
        """Make one update of the policy on real rows, without hooks, on the copy of a trial; algorithms may override it."""
        self.model_free_class.train(self, gradient_steps=1, batch_size=batch_size)  # type: ignore[attr-defined]

    def side_row_bytes(self) -> int:
        """The bytes that the side store keeps for a step of one environment."""
        return 0

    def forget_side_store(self) -> None:
        """Begin with an empty side store of the present replay buffer."""
        self.real.side = None
        self._restore_side({})

    def _first_fit(self) -> None:
        """Fit at the start of ``learn`` where the replay buffer holds data that a new model has not seen."""
        rows = len(self.model_data)
        if self.num_timesteps > 0 and rows == 0:
            warnings.warn(
                "The replay buffer is empty (see load_replay_buffer): the world model waits for new real rows", stacklevel=5
            )
        if not self._model.fitted and rows >= max(self.learning_starts, 1):
            self.fit_world_model()

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """
        As SB3's. After an exception, or when a callback has ended training, the environment is a step ahead of the buffer:
        the next step begins a new episode.
        """
        if not self._checks_real_steps():
            return super().collect_rollouts(*args, **kwargs)
        self.real.note_statistics(self._vec_normalize_env)
        try:
            result = super().collect_rollouts(*args, **kwargs)
        except BaseException:
            self._cut_off_episodes()
            raise
        if not result.continue_training:
            self._cut_off_episodes()
        return result

    def _cut_off_episodes(self) -> None:
        self._last_obs, self.real.stepping = None, False  # SB3 resets the environment then
        if self.replay_buffer is not None:
            cut_off_episodes(self.replay_buffer)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self.real.stepping = True
        if self.acting is None:
            action, stored = super()._sample_action(learning_starts, action_noise, n_envs)
        else:
            with self.acting.collect():
                action, stored = super()._sample_action(self._random_until(learning_starts), action_noise, n_envs)
        # With action noise, SB3 stores what it was before it was rounded.
        return action, (self.policy.scale_action(action) if self._converts_actions else stored)

    def _random_until(self, learning_starts: int) -> int:
        """The number of real steps before which actions are random."""
        return learning_starts

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> tuple[np.ndarray, Any]:
        """
        As SB3's; give the second result back as ``state``, as ``evaluate_policy`` does, and the next decision continues from
        there.

        :param kwargs: ``action_masks`` (``(n_envs, n_actions)``, true where an action is allowed), for policies that take them
        """
        if self.acting is None:
            return super().predict(observation, state, episode_start, deterministic, **kwargs)
        if not self.acting.collecting:
            raw = self.acting.raw(observation, self._vec_normalize_env)
            return self.policy.predict(raw, state, episode_start, deterministic, **kwargs)
        # The raw observations of training: VecNormalize has cut off what is far from its mean.
        last = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        obs, _ = self.policy.obs_to_tensor(last)
        return self.policy.in_units(self.acting.act(obs, deterministic)), None

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        if self._checks_real_steps():
            self.real.check(new_obs, reward, dones, infos, self._vec_normalize_env, self.num_timesteps)
            self.real.store_kept(replay_buffer)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.real.stepping = False
        self._take_snapshot()
        if self.acting is not None:
            self.acting.after_step(buffer_action, dones)

    def _take_snapshot(self) -> None:
        if self.world_model is not None and self.replay_buffer is not None:
            self.real.take_snapshot(self.world_model, self.env, self.replay_buffer)

    # ------------------------------------------------------------------------------------------------ the world model

    @property
    def _model(self) -> WorldModel:
        """The world model, where there must be one"""
        if self.world_model is None:
            raise ValueError(f"This {type(self).__name__} has no world model (world_model={self.world_model_class!r})")
        return self.world_model

    @property
    def _buffer(self) -> ReplayBuffer:
        """The replay buffer, where there must be one"""
        if self.replay_buffer is None:
            raise ValueError(f"This {type(self).__name__} has no replay buffer: give it one (load_replay_buffer)")
        return self.replay_buffer

    @property
    def model_data(self) -> ReplayData:
        """The world model's view on the replay buffer"""
        return ReplayData(self._buffer, self.real.side)

    def _enough_data(self) -> bool:
        """Whether there are ``learning_starts`` rows: not after ``load`` without the replay buffer."""
        return self._buffer.full or self.real.rows(self._buffer) >= self.learning_starts

    def _fit_is_due(self) -> bool:
        if self.trainer is None or self.world_model is None:
            return False
        rows = self.real.rows(self._buffer)
        return self.trainer.due(self.world_model, rows, self.num_timesteps, self.fit_freq, self._enough_data())

    def fit_world_model(self, budget: FitBudget | None = None) -> dict[str, float]:
        """
        Fit the world model on the replay buffer now, and judge it. ``learn`` calls this by itself.

        :param budget: replaces ``fit_kwargs``
        :return: the metrics that are logged under ``model/``
        :raises ValueError: when the model is off, or there is no data
        """
        if self.world_model is None or self.trainer is None:
            raise ValueError(
                f"This {type(self).__name__} has no world model (world_model={self.world_model_class!r}): nothing to fit"
            )
        data = self.model_data
        rows = data.transitions()
        wrong = disagreements(self.parts.known, rows, self.action_space, self.parts.user_gave, self.verbose)
        if wrong:
            # Heads are part of the network, so the model starts anew: neither the verdict nor imagined rows hold.
            self.parts.learn_instead(wrong, self.random)
            self.trainer.forget_verdict()
            self._on_new_model()
        model = self.world_model
        self.trainer.warn_of_lost_terminations(model, data.buffer.optimize_memory_usage, self._episode_num)
        self.trainer.warn_of_wrong_bounds(rows)
        if self._vec_normalize_env is None:
            self.trainer.warn_of_scales(rows)
        self.trainer.warn_of_stuck_actions(rows, self.action_space, self.num_timesteps - self.learning_starts)
        self.registry.hook.sb3_mbrl_before_model_fit(agent=self)
        metrics = self.trainer.fit(
            model,
            data,
            rows,
            budget or make_budget(self.fit_kwargs),
            starts=self._start_states,
            num_timesteps=self.num_timesteps,
            horizon=self._horizon(),
        )
        self.registry.hook.sb3_mbrl_after_model_fit(agent=self, metrics=metrics)
        self.recorder.record_all("model", metrics)
        return metrics

    def _start_states(self, n: int, generator: th.Generator) -> State:
        """Draw ``n`` states of the world model to start from."""
        return replay_starts(self._model, self._buffer, self.real.side, n, generator, self._choose_starts)

    def _choose_starts(self, data: Data, n: int, generator: th.Generator) -> th.Tensor | None:
        """The ids of the rows to start from; ``None``: uniformly."""
        return None

    def _horizon(self) -> int:
        """The number of steps that the agent looks ahead now; the model's error after so many steps is logged."""
        return 1

    def _on_new_model(self) -> None:
        """Drop what the world model of before has left behind."""

    # ------------------------------------------------------------------------------------------------ the replay buffer

    def save_replay_buffer(self, path: Any) -> None:
        """As SB3's; the side store and a checksum go with it. SB3's own classes can read the file, which is written whole."""
        with checkpoint.side_store_attached(self.replay_buffer, self._side_state()):
            buffer_files.save_pickled(super().save_replay_buffer, path)

    def save_plain_replay_buffer(self, path: Any, imagined: bool = True) -> None:
        """
        Save the replay buffer and the side store as plain arrays (``.npz``), as far as the buffer is filled. Nothing is
        pickled; SB3's own classes cannot read the file.

        :param path: the path of the file
        :param imagined: whether the imagined rows go with it; without them they are imagined again
        :raises TypeError: for a buffer that can only be pickled, such as one of a user's class; the message says why
        """
        side = {name: value for name, value in self._side_state().items() if imagined or name != "imagined"}
        buffer_files.save_plain(self._buffer, side, Path(path))

    def _side_state(self) -> dict[str, Any]:
        """The side store as plain arrays; algorithms add to it."""
        side = self.real.side
        return {} if side is None or side.buffer is not self.replay_buffer else {"arrays": side.state()}

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True, *, safe: bool = False) -> None:
        """
        As SB3's; files of plain arrays are read too. A buffer that does not fit leaves the present one in place.

        :param safe: whether to refuse pickles, which can run any code when they are loaded
        :raises ValueError: for a file that is damaged or holds no replay buffer, or one of other spaces or another number of
            environments
        """
        before = vars(self).get("replay_buffer")  # a user may have deleted it, to make room
        try:
            read = partial(super().load_replay_buffer, truncate_last_traj=truncate_last_traj)
            plain = buffer_files.load(read, path, safe)
            loaded = self.replay_buffer if plain is None else plain
        finally:
            self.replay_buffer = before
        self.take_replay_buffer(loaded)
        if plain is not None and truncate_last_traj and isinstance(plain, HerReplayBuffer):
            plain.truncate_last_trajectory()

    def take_replay_buffer(self, buffer: Any) -> None:
        """
        Continue with another replay buffer, if it fits.

        :raises ValueError: when it does not; the present one stays
        """
        checkpoint.check_buffer(buffer, self)
        buffer.device = self.device
        checkpoint.relabel_by(buffer, self.env)
        if self._converts_actions:
            buffer.actions = buffer.actions.astype(np.float32, copy=False)
        self.replay_buffer = buffer
        self._restore_side(vars(buffer).pop("side_store", {}))

    def _restore_side(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`_side_state` gave; algorithms extend it."""
        if state.get("arrays"):
            self.real.side_of(self._buffer).restore(state["arrays"])


def refuse_by_name(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Refuse spaces that no algorithm of SB3 takes, with SB3's types of errors.

    :raises NotImplementedError: for observations
    :raises AssertionError: for actions without bounds
    """
    if reason := unknown_to_sb3(observation_space):
        raise NotImplementedError(f"Stable-Baselines3 does not take these observations: {reason}")
    if isinstance(action_space, spaces.Box) and not np.isfinite([action_space.low, action_space.high]).all():
        raise AssertionError(f"Continuous action space must have a finite lower and upper bound, and is {action_space}")


def make_budget(fit_kwargs: Any) -> FitBudget:
    """
    Make a :class:`~sb3_mbrl.contracts.FitBudget` of the user's keyword arguments.

    :raises TypeError: for a name or a type that it does not take
    :raises ValueError: for a value that makes no sense
    """
    given = keyword_arguments("fit_kwargs", fit_kwargs)
    accepted = [field.name for field in fields(FitBudget)]
    for name, value in given.items():
        if name not in accepted:
            raise TypeError(
                f"fit_kwargs does not take {name!r}.{did_you_mean(name, accepted)}\n  fit_kwargs: {', '.join(accepted)}"
            )
        optional = name in ("max_epochs", "max_batches") and value is None
        if name == "refit":  # a flag, which FitBudget checks
            continue
        if not optional and (not isinstance(value, Real) or isinstance(value, bool)):
            raise TypeError(f"fit_kwargs: {name}={value!r} is not a number")
    return FitBudget(**given)
