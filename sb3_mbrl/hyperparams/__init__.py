"""Settings per environment, from ``hyperparams/*.yml`` (rl-zoo3's format)."""

import difflib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

_NOT_ARGUMENTS = {"policy", "n_timesteps", "n_envs", "env_kwargs", "source"}


@dataclass(frozen=True)
class Preset:
    """
    :param kwargs: for the algorithm's constructor
    :param policy: its first argument
    :param n_timesteps: how long the authors train (``None`` where not stated)
    :param env_kwargs: for ``gymnasium.make``
    """

    kwargs: dict[str, Any]
    policy: str = "MlpPolicy"
    n_timesteps: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)


def preset_names(algo: str) -> list[str]:
    """The environments that have a preset."""
    return sorted(_read(algo))


def load_preset(algo: str, env_id: str) -> Preset:
    """
    :param algo: name of the algorithm, e.g. ``"mbpo"``
    :param env_id: a Gymnasium id
    :raises KeyError: when there is none
    """
    table = _read(algo)
    if env_id not in table:
        close = difflib.get_close_matches(env_id, table, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
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


def _read(algo: str) -> dict[str, dict[str, Any]]:
    file = resources.files("sb3_mbrl") / "hyperparams" / f"{algo}.yml"
    if not file.is_file():
        raise KeyError(f"There are no presets of {algo!r}")
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in table.items() if not key.startswith("_")}
