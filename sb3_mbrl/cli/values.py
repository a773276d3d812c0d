"""What is typed on a command line: ``key=value`` pairs, plugins, mistakes."""

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from sb3_mbrl.plugins import Registry, get_registry
from sb3_mbrl.plugins.errors import did_you_mean

_WORDS = {"true": True, "false": False, "none": None}


class UserError(Exception):
    """A mistake on the command line; the message says what to do."""


def parse_value(text: str) -> Any:
    """A Python literal (``3e-4``, ``[64,64]``), ``true``, ``false`` or ``none``; anything else is a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_pairs(option: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """
    :param option: for the message
    :param pairs: ``["members=5", ...]``
    :raises UserError: for anything else
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
    Hold arguments against a signature before anything is built.

    :param option: for the message
    :param given: by name
    :param factory: what will be called
    :return: the same, with ``1e6`` as an integer where an integer is meant
    :raises UserError: for a name that the factory does not take
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
    """By name, for a class those that its ``**kwargs`` pass on to its bases too; and whether it takes any other."""
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
    :param names: modules to import, or names of installed plugins that ``SB3_MBRL_PLUGINS`` leaves out
    :return: for ``plugins=[...]`` of an agent, and the registry that has them
    :raises UserError: when one is neither
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


def make_env(env_id: str, env_kwargs: Mapping[str, Any], render: bool = False) -> gym.Env:
    """
    :param env_id: a Gymnasium id
    :param env_kwargs: for ``gymnasium.make``
    :param render: in a window
    :raises gymnasium.error.Error: for an unknown id; the message names the nearest one
    :raises UserError: for arguments that it does not take, or a missing package
    """
    try:
        return gym.make(env_id, **{**env_kwargs, **({"render_mode": "human"} if render else {})})
    except ModuleNotFoundError as error:
        raise UserError(f"--env {env_id}: there is no module {error.name!r}; install what the environment needs") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"--env {env_id}: {error}") from error
