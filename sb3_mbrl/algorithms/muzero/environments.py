"""What MuZero asks its environments: how many players move in turn, and which actions are legal."""

import warnings
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.checks import user_stacklevel
from sb3_mbrl.spaces import as_mask


def players(env: VecEnv) -> int:
    """
    Return how many players move in turn in an environment (its ``turns``), by default 1.

    :raises ValueError: for more than two, or other numbers in the environments of one agent
    """
    envs = getattr(env.unwrapped, "envs", None)
    if envs is None:  # in other processes, where has_attr asks the first one alone
        turns = env.get_attr("turns") if env.has_attr("turns") else [1]
    else:
        turns = [1 if (turns := _attribute(one, "turns")) is None else turns for one in envs]
    if turns[0] not in (1, 2) or any(other != turns[0] for other in turns):
        raise ValueError(f"The environments have turns={turns}: MuZero plays alone (1) or for two players (2), in all of them")
    return int(turns[0])


def check_masks(env: VecEnv, action_space: spaces.Space) -> None:
    """
    Refuse masks that would be ignored, where the environments are in this process.

    :raises ValueError: where some environments have ``action_masks()``, and others do not
    """
    envs = getattr(env.unwrapped, "envs", [])
    having = sum(callable(_attribute(one, "action_masks")) for one in envs)
    for one in envs:
        if not callable(_attribute(one, "action_masks")) and env.has_attr("action_masks"):
            kind = type(_attribute(one, "action_masks")).__name__
            if kind != "NoneType" or having == 0:
                raise ValueError(f"action_masks of {one} is a {kind}: make it a method, action_masks(), that returns the mask")
    if 0 < having < len(envs):
        raise ValueError(
            f"{having} of {len(envs)} environments have action_masks(), and the others do not: let all have it, or none"
        )
    if having and not isinstance(action_space, spaces.Discrete):
        warnings.warn(
            f"The environment has action_masks(), which are not used: MuZero samples actions of {action_space}, and only "
            "those of Discrete spaces can be masked.",
            stacklevel=user_stacklevel(),
        )


def masks(env: VecEnv, action_space: spaces.Space, num_timesteps: int) -> th.Tensor | None:
    """
    Ask environments for their masks (``action_masks()``, as for MaskablePPO).

    :param num_timesteps: the number of real steps so far, for errors
    :return: ``(n_envs, n_actions)`` booleans; ``None`` where there are none
    :raises ValueError: for a mask of another shape, or one that allows nothing
    """
    if not isinstance(action_space, spaces.Discrete) or not env.has_attr("action_masks"):
        return None
    given, wanted = [as_mask(mask) for mask in env.env_method("action_masks")], (int(action_space.n),)
    for number, mask in enumerate(given):
        if tuple(mask.shape) != wanted or not mask.any():
            wrong = "allows no action" if tuple(mask.shape) == wanted else f"has the shape {tuple(mask.shape)}"
            raise ValueError(
                f"The action_masks() of environment {number} {wrong} after {num_timesteps} real steps: give {wanted}, true "
                "where an action is allowed, with at least one. Where none is left, the episode has to end."
            )
    return th.stack(given)


def _attribute(env: Any, name: str) -> Any:
    """Return an attribute of an environment or of one that it wraps; ``None``: there is none."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None
