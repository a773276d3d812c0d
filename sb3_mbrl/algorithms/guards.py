"""Refusing real data that is not finite: one such row would spoil the replay buffer, every fit and every value."""

from typing import Any

import numpy as np


def nonfinite_fault(
    new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> tuple[str, int] | None:
    """
    Look for NaN and infinity in what a step of the real environments returned.

    :param new_obs: ``(n_envs, ...)``, or a dictionary of these
    :param reward: ``(n_envs,)``
    :param dones: ``(n_envs,)``
    :param infos: one per environment, with the terminal observations
    :return: what is not finite (with its key) and in which environment; ``None`` when all is well
    """
    for name, value in [*_named("observation", new_obs), ("reward", reward)]:
        if np.issubdtype(value.dtype, np.floating) and not _finite(value).all():
            return name, int(np.argmin(_finite(value.reshape(len(value), -1)).all(1)))
    for env in np.flatnonzero(dones):
        terminal = infos[env].get("terminal_observation")
        if terminal is None:
            continue
        for name, value in _named("terminal observation", terminal):
            if not _finite(np.asarray(value)).all():
                return name, int(env)
    return None


def _finite(value: np.ndarray) -> np.ndarray:
    """Finite in float32, as which networks will see it."""
    with np.errstate(over="ignore"):
        return np.isfinite(value.astype(np.float32))


def _named(name: str, obs: Any) -> list[tuple[str, Any]]:
    if isinstance(obs, dict):
        return [(f"{name}[{key!r}]", value) for key, value in obs.items()]
    return [(name, obs)]
