"""Checkpoints: what a zip holds, and saving and loading it.

=========================  =====================================================================================
in the zip                 as
=========================  =====================================================================================
policy, its optimisers     SB3's entries
world model's weights,     ``world_model`` (the input and target normalisers are among its buffers)
normalisers
its optimiser              ``world_model.optimizer``
everything else of ours    ``model_based``: ``{object: state}``, JSON values, with arrays and tensors as their bytes
SB3's attributes           JSON where they are JSON values; the others as pickles, or with ``save(..., safe=True)`` as the
                           JSON of :mod:`~sb3_mbrl.agent.plain_values`, under the key :data:`PLAIN`
=========================  =====================================================================================

``model_based`` has the state of every object of an agent (:attr:`~sb3_mbrl.agent.agent.ModelBasedAgent.object_names`): how
parts were chosen, the stored data of a model (:meth:`~sb3_mbrl.contracts.WorldModel.extra_state`), fit counters and verdicts,
random streams, and what plug-ins put into the ``extra`` of ``sb3_mbrl_on_save``. Nothing of this library is pickled by the
name of its module, so that files of the library can be renamed. The policy's class is stored by its registered name; known
functions of the library as plain values. Functions and policy classes of users are pickled, as SB3 does.

Not in the zip: the replay buffer, its side store and the imagined rows (SB3's rule: ``save_replay_buffer``), plug-in objects
(give them again: ``load(..., plugins=[...])``), and a world model, a planner or an imagination given as an instance (give it
again).

**The rule of imagined rows:** ``load_replay_buffer`` brings them back if they are of the step at which the agent was saved.
Otherwise they follow from model, policy and replay buffer, so they are imagined anew, as many as their age limit would have
kept, at the first ``train`` that finds enough real rows (``learning_starts``). Until the replay buffer is loaded or refilled,
training uses real rows alone. ``save(..., include=["imagined"])`` keeps them in the zip too.

**The order of loading:** SB3's ``load`` puts attributes into ``__dict__``, calls ``_setup_model``, then ``set_parameters``.
``_setup_model`` rebuilds the structure of the parts from the saved state; :func:`restore` puts counters and verdicts back
after ``set_parameters``.
"""

import json
import pathlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import is_json_serializable, json_to_data

from sb3_mbrl.agent.known_functions import FUNCTIONS, plain_function
from sb3_mbrl.agent.manifest import DamagedError, verify_file
from sb3_mbrl.agent.objects import from_plain, to_plain, unlike
from sb3_mbrl.agent.plain_values import decode, encode
from sb3_mbrl.agent.whole_files import write_beside
from sb3_mbrl.agent.zip_file import (
    check_archive,
    check_names,
    name_what_cannot_be_pickled,
    qualified_name,
    refuse_model_free,
    same_json,
    saved_attributes,
)
from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.plugins.kinds import KINDS
from sb3_mbrl.plugins.selection import path_of
from sb3_mbrl.rng import streams_kept

STATE = "model_based"
"""The key of the zip that holds the state of all objects"""

CUSTOM_POLICY = "custom_policy_class"
"""The key of a policy class that has no registered name"""

KNOWN_FUNCTIONS = "known_functions"
"""The key of known functions that are no plain values"""

PLAIN = "__sb3_mbrl_plain__"
"""The only key of an attribute that is saved as JSON where SB3 would pickle it"""

TRUSTED = "trusted_names"
"""The attribute by which ``load`` tells ``_setup_model`` what the file may name"""

SAVED_ONLY = (STATE, CUSTOM_POLICY, KNOWN_FUNCTIONS)
"""In the zip, not on the agent"""


_OF_WRONG_VALUES = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, RuntimeError)
"""The errors of code that was given values of other types, lengths or sizes than it has saved"""


# ---- saving


def save(agent: Any, write: Callable[..., None], path: Any, exclude: Any, include: Any, safe: bool = False) -> None:
    """
    Save an agent.

    :param agent: a :class:`~sb3_mbrl.agent.agent.ModelBasedAgent`
    :param write: SB3's ``save``
    :param path: as in SB3
    :param exclude: as in SB3
    :param include: as in SB3; ``"imagined"`` keeps the imagined transitions
    :param safe: whether to save as JSON what SB3 would pickle
    :raises ValueError: when ``exclude`` names something that ``load`` needs
    :raises TypeError: when a state is no plain value, or with ``safe`` a value can only be pickled; the message names it
    """
    excluded, included = set(exclude or ()), set(include or ())
    for name in (*SAVED_ONLY, "world_model_kwargs", "policy_class"):
        if name in excluded:
            raise ValueError(f"save(exclude=[{name!r}]): the agent could not be loaded again; leave it out of exclude")
    extra: dict[str, Any] = {}
    agent.registry.hook.sb3_mbrl_on_save(agent=agent, extra=extra)
    saved = _saved_values(agent, extra, included)
    if safe:
        saved |= _plain_attributes(agent, saved, excluded, included)
    before = {name: vars(agent)[name] for name in saved if name in vars(agent)}
    try:
        agent.__dict__.update(saved)
        included -= set(agent.object_names)
        if isinstance(path, (str, pathlib.Path)):
            target = pathlib.Path(path)
            if target.suffix == "":  # SB3's rule
                target = pathlib.Path(f"{path}.zip")
            if target.is_file() or not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                write_beside(target, lambda beside: _write_file(write, beside, excluded, included))
                return
        write(path, exclude=excluded, include=included)
    except Exception as error:
        pickled = {name: saved[name] for name in (*FUNCTIONS, KNOWN_FUNCTIONS, CUSTOM_POLICY) if name in saved}
        name_what_cannot_be_pickled(error, pickled)
        raise
    finally:
        for name in saved:
            del agent.__dict__[name]
        agent.__dict__.update(before)


def _write_file(write: Callable[..., None], path: pathlib.Path, exclude: set[str], include: set[str]) -> None:
    with path.open("wb") as file:  # SB3 leaves its own file open when it fails
        write(file, exclude=exclude, include=include)


def _saved_values(agent: Any, extra: Mapping[str, Any], include: set[str]) -> dict[str, Any]:
    """The attributes that take the place of the agent's own while it is saved."""
    objects = {name: getattr(agent, name) for name in agent.object_names}
    state = {name: part.state_dict() for name, part in objects.items() if part is not None}
    if "imagined" in include and state.get("augmenter") and objects["augmenter"].imagined is not None:
        state["augmenter"]["imagined"] = objects["augmenter"].imagined.to_state()
    own = type(agent)
    policy = next((name for name, kind in agent.policy_aliases.items() if kind is agent.policy_class), None)
    plain = {name: to_plain(value, f"the state of {name}") for name, value in state.items()}
    plain["plugins"] = to_plain(extra, "extra (of the hook sb3_mbrl_on_save)")
    plain["policy"] = policy
    plain["saved_by"] = {
        "class": own.__name__,
        "base": qualified_name(agent.model_free_class),
        "algorithm": _algorithm(own),
    }
    values: dict[str, Any] = {STATE: plain, **{name: plain_function(getattr(agent, name)) for name in FUNCTIONS}}
    if agent.world_model is not None and getattr(objects.get("real"), "stepping", False):
        # The environment is a step ahead of the replay buffer, which never sees that step: it has to begin a new episode.
        values |= {"_last_obs": None, "_last_original_obs": None}
    if pickled := agent.parts.pickled_functions():
        values[KNOWN_FUNCTIONS] = pickled
    # A model-free class that opens this file looks for a policy of this name, and says that there is none: see the name.
    without = f"; without its world model: {own.__name__}.load(path).to_model_free()" if hasattr(own, "to_model_free") else ""
    values["policy_class"] = f"in a checkpoint saved by {own.__name__} (load it with {own.__name__}.load(path){without})"
    if policy is None:
        values[CUSTOM_POLICY] = agent.policy_class
    for kind, reference in agent.part_references.items():
        # Instances are not stored, and classes not pickled: where one cannot be imported any more, the reference gives a
        # better message than a failed unpickling.
        choice = getattr(agent, f"{kind}_class")
        if not (choice is None or isinstance(choice, str)):
            values[f"{kind}_class"] = reference["factory"]
    return values


def _plain_attributes(agent: Any, saved: Mapping[str, Any], exclude: set[str], include: set[str]) -> dict[str, Any]:
    """
    Describe by JSON what SB3 would pickle.

    :param saved: the attributes that take the place of the agent's own
    :raises NotPlainError: for a value that can only be pickled; the message names it
    """
    state_dicts, variables = agent._get_torch_save_params()
    elsewhere = {name.split(".")[0] for name in (*state_dicts, *variables)}
    left_out = ((exclude | set(agent._excluded_save_params())) - include) | elsewhere
    attributes = {name: value for name, value in {**vars(agent), **saved}.items() if name not in left_out}
    return {name: {PLAIN: encode(value, where=name)} for name, value in attributes.items() if not is_json_serializable(value)}


def _algorithm(kind: Any) -> str | None:
    """The algorithm of a class without a model-free counterpart; classes of users are of the algorithm that they extend."""
    if kind.model_free_class is not OffPolicyAlgorithm:
        return None
    return next((one.__name__ for one in kind.__mro__ if one.__module__.startswith("sb3_mbrl.")), None)


# ---- loading


def take_saved(agent: Any) -> dict[str, Any] | None:
    """Take the saved state out of the attributes that SB3 has put in place; ``None`` for a new agent."""
    saved = agent.__dict__.pop(STATE, None)
    agent.__dict__.pop(CUSTOM_POLICY, None)
    return None if saved is None else from_plain(saved)


def check(cls: Any, path: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check that a class can load a file, with these changes. Nothing is unpickled.

    :param cls: the class that is to load it
    :param kwargs: the attributes to change
    :return: the saved attributes: JSON values, and dictionaries that describe what is pickled
    :raises DamagedError: for a file that is not as the manifest beside it says
    :raises ValueError: when it cannot; the message says which class can, or what to leave out
    :raises TypeError: for a name that is no attribute
    """
    verify_file(path, "zip")
    saved = saved_attributes(path)
    if STATE not in saved:
        if "part_references" in saved or {"planning", "kappa"} <= set(saved):
            raise ValueError(
                f"{path} was saved by a version of sb3-mbrl before its first release, whose checkpoints cannot be read any "
                "more: train the agent again (an SB3 zip of its policy can be made with that version's to_model_free())"
            )
        refuse_model_free(cls, path, saved)
    _check_state(saved[STATE], path)
    for name in _COUNTS:
        if type(saved.get(name, 0)) is not int or saved.get(name, 0) < 0:
            raise DamagedError(f"{path} is damaged: {name} is {saved[name]!r}, and not a number of things")
    saved_by = saved[STATE]["saved_by"]
    right, own = saved_by["class"], qualified_name(cls.model_free_class)
    if saved_by["base"] != own:
        base = saved_by["base"].rpartition(".")[2]
        named = f"model_based({base})" if right.startswith("ModelBased") else right
        raise ValueError(
            f"{path} was saved by {right}, not by {cls.__name__}: load it with {named}.load(path). (That one is made of "
            f"{saved_by['base']}, this one of {own}.)"
        )
    if saved_by["algorithm"] != _algorithm(cls):
        raise ValueError(f"{path} was saved by {right}, not by {cls.__name__}: load it with {right}.load(path)")
    check_names(cls, "load", kwargs, saved)
    _refuse_contradictions(cls, path, kwargs, saved)
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
    return saved


_COUNTS = ("num_timesteps", "_num_timesteps_at_start", "_total_timesteps", "_n_updates", "_episode_num", "n_envs")
"""The attributes that count something"""

_NOT_ARGUMENTS = {
    "observation_space": "it is the environment's: give env=...",
    "action_space": "it is the environment's: give env=...",
    "policy_class": "the file names its policy, whose weights it holds",
    "lr_schedule": "it follows from the learning rate. Did you mean learning_rate=...?",
    **{f"{kind}_class": f"did you mean {kind}=...?" for kind in KINDS},
    **dict.fromkeys(SAVED_ONLY, "it is the state in the file"),
}
"""Attributes in a file that ``load`` cannot change, and why. SB3 would put them into ``__dict__`` without a word."""


def _refuse_contradictions(cls: Any, path: Any, kwargs: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """:raises TypeError: for an argument that says something else than the file, and would be ignored or do damage"""
    where = f"{cls.__name__}.load(..., "
    for name in kwargs:
        if name in _NOT_ARGUMENTS:
            raise TypeError(f"{where}{name}=...): {_NOT_ARGUMENTS[name]}")
        if callable(getattr(cls, name, None)):
            raise TypeError(f"{where}{name}=...): this is a method.{did_you_mean(name, saved)}")
        if name.startswith("_"):
            raise TypeError(f"{where}{name}=...): this is a private attribute.{did_you_mean(name, saved)}")
    own = saved.get("optimizer_kwargs")
    if "optimizer_kwargs" in kwargs and not cls.loads_optimizer_kwargs and not same_json(kwargs["optimizer_kwargs"], own):
        raise TypeError(
            f"{where}optimizer_kwargs={kwargs['optimizer_kwargs']!r}): the optimiser in {path} has its own, "
            f"{own!r}. Leave them out, or start a new agent."
        )
    for name, own, remedy in (
        ("n_envs", saved.get("n_envs"), f"Did you mean env=make_vec_env(..., n_envs={kwargs.get('n_envs')})?"),
        ("policy", saved[STATE]["policy"], "Its weights are those of that policy: leave it out."),
        ("use_sde", saved.get("use_sde"), "Its weights are those of that policy: leave it out."),
    ):
        if name in kwargs and kwargs[name] != own:
            raise TypeError(f"{where}{name}={kwargs[name]!r}): {path} was saved with {name}={own!r}. {remedy}")


def _check_state(state: Any, path: Any) -> None:
    """:raises ValueError: for a state that no agent of this library has saved"""
    expected = {"saved_by": dict, "parts": dict, "plugins": dict}
    present = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in expected.items())
    if present and all(isinstance(state["saved_by"].get(name), str) for name in ("class", "base")):
        references = state["parts"].get("references")
        texts = isinstance(references, dict) and all(_is_reference(reference) for reference in references.values())
        known = state["parts"].get("known")
        texts = texts and isinstance(known, dict) and all(_is_known(value) for value in known.values())
        if texts and "policy" in state and "algorithm" in state["saved_by"]:
            return
    raise ValueError(f"{path} is damaged: what it holds under {STATE!r} is not what sb3-mbrl saves")


def _is_known(value: Any) -> bool:
    return value in (None, "pickled") or (isinstance(value, dict) and "function" in value)


def _is_reference(reference: Any) -> bool:
    names = ("how", "name", "factory", "distribution", "version")
    return isinstance(reference, dict) and all(isinstance(reference.get(name), str) for name in names)


def load(
    cls: Any,
    load_by_sb3: Callable[..., Any],
    path: Any,
    saved: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
    safe: bool = False,
    trust: Iterable[Any] = (),
) -> Any:
    """
    Load an agent whose file has been checked.

    :param cls: its class
    :param load_by_sb3: SB3's ``load``, with the arguments that are not given here
    :param saved: the saved attributes
    :param custom_objects: as in SB3
    :param kwargs: the attributes to change
    :param safe: whether to refuse pickles
    :param trust: what the file may name as its parts, although it is neither registered nor imported yet
    :raises ValueError: for pickles where ``safe`` is true; the message names them
    """
    entries = check_archive(path)
    custom = {**_decoded(path, saved), **(custom_objects or {})}
    # Where all of them are given again, the saved functions are not even unpickled: their module may be missing.
    functions = {name: kwargs[name] for name in FUNCTIONS if callable(kwargs.get(name))}
    try:
        state = from_plain(saved[STATE])
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    pickled = {name for name, value in state["parts"]["known"].items() if value == "pickled"}
    if functions and pickled <= set(functions):
        custom = {KNOWN_FUNCTIONS: {}, **functions, **custom}
    if safe:
        _refuse_pickles(path, {name: value for name, value in saved.items() if name not in custom})
    custom = {"policy_class": _policy_class(cls, saved, path), **custom}
    # SB3 seeds the global streams again, so that whoever loads an agent draws the numbers of its first steps once more. With a
    # world model they stay as they are; without one the class is SB3's to the last bit.
    modelled = "world_model" in state["parts"]["references"]
    seeding = streams_kept() if modelled else nullcontext()
    try:
        with _naming(path, kwargs):
            with seeding:
                agent = load_by_sb3(custom_objects=custom, **kwargs, **{TRUSTED: trusted_names(trust)})
            restore(agent, state)
        if agent._get_torch_save_params()[1] and "pytorch_variables.pth" not in entries:  # SB3's load does without
            raise DamagedError(f"{path} is damaged: its entry 'pytorch_variables.pth' is missing")
    except ImportError as error:
        error.add_note(
            f"{path} pickles an object of this module. Make it importable; if it is a known reward or termination "
            "function, give what was known again instead: load(..., reward_fn=..., termination_fn=...)"
        )
        raise
    if modelled:
        agent.streams.continue_actions()
    agent.registry.hook.sb3_mbrl_on_load(agent=agent, extra=state["plugins"])
    return agent


@contextmanager
def _naming(path: Any, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Name the file in errors of SB3 and PyTorch that come from what is in it, or from what ``load`` was given to change."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    except (EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedError(f"{path} is damaged: an entry cannot be read ({reason})") from error
    except RuntimeError as error:  # PyTorch's, whose type says nothing
        if not str(error).startswith(("Error(s) in loading state_dict", "PytorchStreamReader")):
            raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
        reason = " ".join(str(error).split())
        if kwargs:
            given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            raise ValueError(f"{path} does not fit its settings with the changes of load(..., {given}): {reason}") from error
        raise DamagedError(f"{path} does not fit its own settings: {reason}") from error
    except (OSError, ImportError):
        raise
    except Exception as error:  # a value of another kind than was saved can fail in any way
        if isinstance(error, KeyError) and isinstance(error.__context__, ValueError):
            # SB3's load looks for an old kind of file where parameters are missing, and then fails itself.
            raise DamagedError(f"{path} is damaged: {error.__context__}") from error
        if str(path) in str(error):
            raise
        if type(error) in (ValueError, TypeError) or type(error).__module__.startswith("sb3_mbrl."):
            error.args = (f"{path} cannot be loaded: {error}",)
            raise
        raise ValueError(f"{path} cannot be loaded ({type(error).__name__}: {error})") from error


def _decoded(path: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """
    Decode the attributes that are saved as JSON instead of pickles.

    :raises ValueError: for one that cannot be decoded; the message names it
    """
    values = {}
    for name, value in saved.items():
        if isinstance(value, dict) and set(value) == {PLAIN}:
            try:
                values[name] = decode(value[PLAIN])
            except (ValueError, OverflowError, IndexError) as error:
                raise ValueError(f"{path}: {name} cannot be read: {error}") from error
    return values


def _refuse_pickles(path: Any, saved: Mapping[str, Any]) -> None:
    """:raises ValueError: when any of the attributes is pickled"""
    pickled = [name for name, value in saved.items() if isinstance(value, dict) and ":serialized:" in value]
    if pickled:
        raise ValueError(
            f"{path} holds pickles ({', '.join(pickled)}), which can run any code when they are loaded: safe=True refuses "
            "them. Load it without safe=True if you trust whoever wrote it; save(..., safe=True) writes files without pickles"
        )


def trusted_names(trust: Iterable[Any]) -> tuple[str, ...]:
    """
    Name what a user trusts.

    :param trust: modules and ``"module:name"`` texts, classes and functions
    :raises TypeError: for anything else
    """
    if isinstance(trust, (str, ModuleType)) or not isinstance(trust, Iterable):
        raise TypeError(f"trust={trust!r}: give a list: trust=[...]")
    names = []
    for one in trust:
        if not (isinstance(one, (str, ModuleType)) or callable(one)):
            raise TypeError(f"trust=[{one!r}]: give modules, 'module:name' texts, classes or functions")
        names.append(one if isinstance(one, str) else one.__name__ if isinstance(one, ModuleType) else path_of(one))
    return tuple(names)


def restore_structure(parts: Any, state: Mapping[str, Any]) -> None:
    """
    Restore what a world model has stored beside its weights.

    :raises DamagedError: for something that it has not stored
    """
    try:
        parts.restore_structure(state)
    except _OF_WRONG_VALUES as error:
        raise DamagedError(f"the stored data of the world model is not what was saved ({error!r})") from error


def restore(agent: Any, state: Mapping[str, Any]) -> None:
    """
    Put counters, verdicts and random streams back, after the weights.

    :raises DamagedError: for a state that no object of its name has saved
    """
    for name in agent.object_names:
        part = getattr(agent, name)
        if part is None or name not in state:
            continue
        # The kind of the streams of this process says nothing of the saved ones, which are tried out when they are loaded.
        if name not in ("parts", "streams") and (reason := unlike(state[name], part.state_dict(), name)):
            raise DamagedError(f"{reason}, under {STATE!r}")
        try:
            part.load_state_dict(state[name])
        except _OF_WRONG_VALUES as error:
            raise DamagedError(f"the state of {name!r} under {STATE!r} is not what was saved ({error!r})") from error


def _policy_class(cls: Any, saved: Mapping[str, Any], path: Any) -> Any:
    name = saved[STATE]["policy"]
    if name is None and CUSTOM_POLICY not in saved:
        raise DamagedError(f"{path} is damaged: it names no policy")
    if isinstance(name, str) and name in cls.policy_aliases:
        return cls.policy_aliases[name]
    if name is not None:
        raise DamagedError(f"{path} is damaged: {cls.__name__} has no policy {name!r}, but {', '.join(cls.policy_aliases)}")
    return json_to_data(json.dumps({CUSTOM_POLICY: saved[CUSTOM_POLICY]}))[CUSTOM_POLICY]


# ---- parameters

_keeping_new_model: ContextVar[bool] = ContextVar("keeping the new world model", default=False)


@contextmanager
def keeping_new_model() -> Iterator[None]:
    """While the parameters of a model-free agent are put into a model-based one, its new world model stays as it is."""
    before = _keeping_new_model.set(True)
    try:
        yield
    finally:
        _keeping_new_model.reset(before)


def set_parameters(agent: Any, set_by_sb3: Callable[..., None], given: Any, exact_match: bool, device: Any) -> None:
    """
    Set parameters as SB3 does.

    :param set_by_sb3: SB3's ``set_parameters``
    :param given: a path or a dictionary
    """
    if _keeping_new_model.get():
        own = {name: value for name, value in agent.get_parameters().items() if name.startswith("world_model")}
        given = {**given, **own}
    try:
        set_by_sb3(given, exact_match, device)
    except ValueError as error:
        named = given if isinstance(given, dict) else ()
        if "do not match" in str(error) and "world_model" not in named:
            error.add_note("Parameters of a model-free class lack the world model; exact_match=False keeps this agent's own")
        raise


# ---- replay buffers


@contextmanager
def side_store_attached(buffer: Any, state: dict[str, Any]) -> Iterator[None]:
    """Attach the side store to a buffer while SB3 pickles it."""
    if buffer is None or not state:
        yield
        return
    buffer.side_store = state
    try:
        yield
    finally:
        del buffer.side_store


def check_buffer(buffer: Any, agent: Any) -> None:
    """:raises ValueError: when a replay buffer does not fit an agent"""
    for name in ("observation_space", "action_space", "n_envs"):
        theirs, own = getattr(buffer, name), getattr(agent, name)
        if theirs != own:
            way = ""
            if name == "n_envs":
                way = (
                    f". Make the agent with as many environments, make_vec_env(..., n_envs={theirs}), or "
                    f"load(path, env=make_vec_env(..., n_envs={theirs})). To use only the rows, fit the world model to them: "
                    "fit_world_model(agent.world_model, ReplayData(replay_buffer)) of sb3_mbrl.fitting and sb3_mbrl.buffers"
                )
            raise ValueError(f"The replay buffer was recorded with {name} {theirs}; this agent has {own}{way}")
    dictionaries = isinstance(agent.observation_space, spaces.Dict)
    if isinstance(buffer, DictReplayBuffer) != dictionaries:
        wanted = "DictReplayBuffer" if dictionaries else "ReplayBuffer"
        raise ValueError(f"This agent needs a {wanted} (or a subclass), not a {type(buffer).__name__}")
    present = vars(agent).get("replay_buffer")
    for kind in (HerReplayBuffer, NStepReplayBuffer):
        if present is not None and isinstance(buffer, kind) != isinstance(present, kind):
            raise ValueError(
                f"The replay buffer is a {type(buffer).__name__}, and this agent was made for a "
                f"{type(present).__name__} (replay_buffer_class, n_steps), which samples something else"
            )


def relabel_by(buffer: Any, env: Any) -> None:
    """Let a buffer with hindsight compute rewards by an environment."""
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = env
