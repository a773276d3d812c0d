"""Presets: settings by name or environment, from ``hyperparams/*.yml`` (rl-zoo3's format)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from sb3_mbrl.checks import did_you_mean

PARTS = ("world_model", "planner", "imagination")
"""The arguments that choose a part; the keyword arguments of each are ``<part>_kwargs``"""

_NOT_ARGUMENTS = {"policy", "n_timesteps", "n_envs", "env_kwargs", "source"}


@dataclass(frozen=True)
class Preset:
    """
    The settings of an algorithm for one environment.

    :param kwargs: the keyword arguments of the algorithm's constructor
    :param policy: the constructor's first argument
    :param n_timesteps: the number of real steps for which the authors train (``None`` where not stated)
    :param env_kwargs: the arguments of ``gymnasium.make``
    """

    kwargs: dict[str, Any]
    policy: str = "MlpPolicy"
    n_timesteps: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)


def preset_names(algo: str) -> list[str]:
    """
    List the presets of an algorithm.

    :param algo: the name of the algorithm, e.g. ``"mbpo"``
    :return: Gymnasium ids and other names, e.g. ``"published"``
    :raises KeyError: when the algorithm has no presets
    """
    return sorted(_read(algo))


def load_preset(algo: str, env_id: str) -> Preset:
    """
    Load a preset.

    :param algo: the name of the algorithm, e.g. ``"mbpo"``
    :param env_id: a Gymnasium id or another name of a preset
    :return: values that are not shared with any other call
    :raises KeyError: when there is no such preset; the message names the nearest one
    """
    if not isinstance(env_id, str):
        raise KeyError(f"{env_id!r} is no name of a preset: give a Gymnasium id, such as 'Pendulum-v1'")
    table = _read(algo)
    if env_id not in table:
        hint = did_you_mean(env_id, table)
        raise KeyError(f"There is no preset of {algo} for {env_id!r}.{hint} There are: {', '.join(sorted(table))}")
    entry = table[env_id]
    kwargs = {key: value for key, value in entry.items() if key not in _NOT_ARGUMENTS}
    n_timesteps = entry.get("n_timesteps")
    return Preset(
        kwargs,
        entry.get("policy", "MlpPolicy"),
        None if n_timesteps is None else int(n_timesteps),
        entry.get("env_kwargs", {}),
    )


def preset_algorithms() -> list[str]:
    """List the names of the algorithms that have presets."""
    files = (resources.files("sb3_mbrl") / "hyperparams").iterdir()
    return sorted(file.name.removesuffix(".yml") for file in files if file.name.endswith(".yml"))


def with_overrides(
    settings: Mapping[str, Any], overrides: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """
    Put overrides on top of a preset's settings.

    Dictionaries of keyword arguments (``fit_kwargs``, ``world_model_kwargs``, ...) are merged key by key, anything else is
    replaced. The preset's keyword arguments of a part are left out where the overrides choose another part, or none.

    :param settings: the preset's settings
    :param overrides: the settings to change
    :param defaults: the defaults of the constructor, for parts that the preset does not choose
    :return: the settings, and the names of what was left out
    """
    result, left_out = dict(settings), []
    for part in PARTS:
        other = part in overrides and not _same(overrides[part], settings.get(part, defaults.get(part)))
        if other and result.pop(f"{part}_kwargs", None):
            left_out.append(f"{part}_kwargs")
    for name, value in overrides.items():
        merges = name.endswith("_kwargs") and isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = {**result[name], **value} if merges else value
    return result, left_out


def _same(choice: Any, other: Any) -> bool:
    # By identity unless both are names: a world model given as an instance may define == in its own way.
    return choice is other or (isinstance(choice, str) and isinstance(other, str) and choice == other)


def _read(algo: str) -> dict[str, dict[str, Any]]:
    file = resources.files("sb3_mbrl") / "hyperparams" / f"{algo}.yml"
    if not file.is_file():
        raise KeyError(f"There are no presets of {algo!r}")
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in table.items() if not key.startswith("_")}
