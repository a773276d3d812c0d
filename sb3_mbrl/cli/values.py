"""Values of command-line options: ``key=value`` pairs, and the plugins, algorithms, devices and environments they name."""

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_mbrl.algorithms.model_based import BY_NAME, model_based_by_name
from sb3_mbrl.checks import did_you_mean
from sb3_mbrl.plugins import Registry, get_registry

DEFAULT_ALGORITHM = "mbpo"
"""The algorithm of commands without ``--algo``"""

_WORDS = {"true": True, "false": False, "none": None}


class UserError(Exception):
    """A mistake on the command line; the message says what to do."""


def parse_value(text: str) -> Any:
    """Parse a Python literal (``3e-4``, ``[64,64]``), ``true``, ``false`` or ``none``; keep anything else as a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_pairs(option: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """
    Parse ``key=value`` pairs.

    :param option: the name of the option, for the message
    :param pairs: the pairs, e.g. ``["members=5", ...]``
    :return: the values by their keys
    :raises UserError: for a text that is no pair
    """
    result = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            outer, _, inner = key.partition(".")
            nested = f'; a setting within another one: {option} "{outer}={{{inner!r}: {value}}}"' if equals and inner else ""
            raise UserError(
                f"{option} {pair!r}: write key=value, without spaces around the = (quote values that contain spaces)" + nested
            )
        result[key] = parse_value(value)
    return result


def check_arguments(option: str, given: Mapping[str, Any], factory: Callable[..., Any]) -> dict[str, Any]:
    """
    Check arguments against a signature before anything is built.

    :param option: the name of the option, for the message
    :param given: the arguments by name
    :param factory: the class or function that the arguments are for
    :return: the same arguments, with ``1e6`` as an integer where the default is an integer
    :raises UserError: for a name that the factory does not take, or a word where the default is a number
    """
    parameters, takes_any = _parameters(factory)
    result = dict(given)
    for key, value in given.items():
        if key not in parameters:
            if takes_any:
                continue
            name = getattr(factory, "__name__", factory)
            raise UserError(f"{option} {key}=...: {name} has no argument {key!r}.{did_you_mean(key, parameters)}")
        default = parameters[key].default
        if type(default) is int and isinstance(value, float) and value.is_integer():
            result[key] = int(value)
        elif type(default) in (int, float) and isinstance(value, str):
            raise UserError(f"{option} {key}={value}: give a number (the default is {default})")
    return result


def _parameters(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """
    List the parameters of a class or function.

    :return: the parameters by name, for a class with ``**kwargs`` those of its bases too; and whether it takes any others
    """
    functions: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        functions = [vars(cls)["__init__"] for cls in factory.__mro__ if "__init__" in vars(cls)]
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters
        found = {**parameters, **found}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return found, False
    return found, True


def load_plugins(names: Sequence[str] | None) -> tuple[list[Any], Registry]:
    """
    Import the plugins of ``--plugin``.

    :param names: modules to import, or names of installed plugins that ``SB3_MBRL_PLUGINS`` leaves out
    :return: the argument ``plugins=[...]`` of an agent, and a registry with these plugins
    :raises UserError: for a name that is neither
    """
    registry = get_registry()
    plugins: list[Any] = []
    for name in names or ():
        if any(plugin.origin.is_called(name) for plugin in registry.plugins):
            plugins.append(name)
            continue
        try:
            plugins.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"--plugin {name}: importing it failed: {error}") from error
            raise UserError(
                f"--plugin {name}: there is no module {error.name!r}, and no plugin of this name is installed "
                "(`sb3-mbrl plugins` lists them). Is its folder on PYTHONPATH?"
            ) from error
        except Exception as error:
            raise UserError(f"--plugin {name}: importing it failed: {type(error).__name__}: {error}") from error
    return plugins, registry.with_plugins(plugins)


def plugin_arguments(plugins: list[Any]) -> dict[str, Any]:
    """Make the keyword arguments that hand plugins to an algorithm's constructor or ``load``."""
    # Without plugins the argument is left out: a plug-in's algorithm class need not take it.
    return {"plugins": plugins} if plugins else {}


def algorithm_class(registry: Registry, name: str) -> type[OffPolicyAlgorithm]:
    """
    Find the class of an algorithm.

    :param registry: the registry to look in
    :param name: the name of a registered algorithm, or ``mb_td3`` and so on for :func:`~sb3_mbrl.model_based` classes
    :raises UserError: for anything but an off-policy class, or a missing package
    :raises UnknownPartError: for an unknown name; the message names the nearest one
    """
    if name in BY_NAME:
        try:
            return model_based_by_name(name)
        except ImportError as error:
            raise UserError(f"--algo {name}: {error}. Run `pip install sb3-contrib`.") from error
    cls = registry.resolve("algorithm", name).factory
    if not (isinstance(cls, type) and issubclass(cls, OffPolicyAlgorithm)):
        raise UserError(f"--algo {name}: {cls} is not an off-policy algorithm class of Stable-Baselines3")
    return cls


def check_device(name: str) -> None:
    """:raises UserError: for a device that PyTorch cannot use here"""
    try:
        th.zeros(1, device=get_device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).strip().splitlines()[0]}") from error


def make_env(env_id: str, env_kwargs: Mapping[str, Any], render: bool = False) -> gym.Env:
    """
    Make an environment.

    :param env_id: a Gymnasium id, or ``module:Class`` of an environment that is not registered
    :param env_kwargs: the arguments of ``gymnasium.make``
    :param render: whether to show the environment in a window
    :raises gymnasium.error.Error: for an unknown id; the message names the nearest one
    :raises UserError: for arguments that the environment does not take, or a missing package
    """
    own = {**env_kwargs, **({"render_mode": "human"} if render else {})}
    try:
        return gym.make(_environment_class(env_id) or env_id, **own)
    except ModuleNotFoundError as error:
        module = env_id.partition(":")[0]
        if ":" in env_id and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"--env {env_id}: there is no module {error.name!r}, neither installed nor in this folder ({Path.cwd()})"
            ) from error
        raise UserError(f"--env {env_id}: there is no module {error.name!r}; install what the environment needs") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"--env {env_id}: {error}") from error


def _environment_class(env_id: str) -> EnvSpec | None:
    """Make the specification of ``module:Class``; ``None`` for the id of a registered environment."""
    module, colon, name = env_id.partition(":")
    if not colon or env_id in gym.registry:
        return None
    found = getattr(importlib.import_module(module), name, None)
    if name in gym.registry or not (isinstance(found, type) and issubclass(found, gym.Env)):
        return None
    return EnvSpec(id=name, entry_point=env_id)
