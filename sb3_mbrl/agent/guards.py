"""Refusing real data that cannot be: one such row would spoil the replay buffer, every fit and every value."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mbrl.spaces import outside


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


def outside_fault(
    space: spaces.Space, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]
) -> tuple[str, int, Any, spaces.Space] | None:
    """
    Look for categories that there are not.

    :param space: of the observations
    :param new_obs: ``(n_envs, ...)``, or a dictionary of these
    :param dones: ``(n_envs,)``
    :param infos: one per environment, with the terminal observations
    :return: what, in which environment, its value, and the space that it is not in; ``None`` when all is well
    """
    children = space.spaces.items() if isinstance(space, spaces.Dict) else [(None, space)]
    for key, child in children:
        if not isinstance(child, (spaces.Discrete, spaces.MultiDiscrete)):
            continue
        name = "observation" if key is None else f"observation[{key!r}]"
        found = [(name, env, value) for env, value in enumerate(new_obs if key is None else new_obs[key])]
        for env in np.flatnonzero(dones).tolist():
            terminal = infos[env].get("terminal_observation")
            if terminal is not None:
                found.append((f"terminal {name}", env, terminal if key is None else terminal[key]))
        for what, env, value in found:
            if outside(child, np.asarray(value)[None])[0]:
                return what, env, value, child
    return None


def _finite(value: np.ndarray) -> np.ndarray:
    """Finite in float32, as which networks will see it."""
    with np.errstate(over="ignore"):
        return np.isfinite(value.astype(np.float32))


def _named(name: str, obs: Any) -> list[tuple[str, Any]]:
    if isinstance(obs, dict):
        return [(f"{name}[{key!r}]", value) for key, value in obs.items()]
    return [(name, obs)]


def fault_of_step(
    space: spaces.Space, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> str | None:
    """In words what is wrong with a step of the real environments (or with a reset, given zeros for the rest), if anything."""
    if found := nonfinite_fault(new_obs, reward, dones, infos):
        return f"Environment {found[1]} returned NaN or infinity in its {found[0]}"
    if outside := outside_fault(space, new_obs, dones, infos):
        what, env, value, child = outside
        return f"Environment {env} returned the {what} {value}, which is not in {child},"
    return None
