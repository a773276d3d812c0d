"""Settings that Stable-Baselines3 takes as they are, although learning would fail on them, perhaps hours later.

:func:`check_forms` comes before SB3 sets an agent up, and gives a line to what would fail there anyway. :func:`check_values`
comes after it, where there is a world model: without one, a class is SB3's to the last bit.
"""

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy

from sb3_mbrl.checks import number, whole


def keyword_arguments(name: str, given: Any) -> dict[str, Any]:
    """:raises TypeError: when they are no dictionary"""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name}={given!r}: give a dictionary of keyword arguments")
    return dict(given or {})


# ---- before SB3's set-up


def check_forms(settings: Mapping[str, Any], owner: str) -> None:
    """
    Check the kinds of settings, by which SB3's set-up would fail.

    :param settings: the attributes of an agent that is not set up yet
    :param owner: the name of its class, for the error
    :raises TypeError: for a value of another kind
    :raises ValueError: for a text or a number that says nothing
    """
    if "observation_space" not in settings:
        raise ValueError(f"{owner} was given env=None: give an environment, or the name of one")
    policy = settings["policy_class"]
    if not callable(policy) or (isinstance(policy, type) and not issubclass(policy, BasePolicy)):
        raise TypeError(f"policy={policy!r}: give the name of a policy, such as 'MlpPolicy', or a class of policies")
    kind = settings["replay_buffer_class"]
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, ReplayBuffer)):
        raise TypeError(f"replay_buffer_class={kind!r}: give ReplayBuffer of Stable-Baselines3 or a subclass, or None")
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        keyword_arguments(name, settings[name])
    seed = settings["seed"]
    if seed is not None and not (isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32):
        raise ValueError(f"seed={seed!r}: give a whole number from 0 to 2**32 - 1, or None")
    if not isinstance(settings.get("n_steps", 1), Real):
        raise TypeError(f"n_steps={settings['n_steps']!r}: give the number of steps of a return, a whole number")
    if not isinstance(settings["buffer_size"], Integral):
        raise TypeError(f"buffer_size={settings['buffer_size']!r}: give the number of transitions to keep, a whole number")
    if "ent_coef" in settings and "target_entropy" in settings:  # SAC and its like
        _check_entropy_coefficient(settings["ent_coef"])
    target = settings.get("target_entropy", "auto")
    if target != "auto":
        _finite("target_entropy", target, "'auto' or a number")


def _check_entropy_coefficient(given: Any) -> None:
    """Check SAC's ``ent_coef``, which is a number, ``"auto"``, or ``"auto_0.1"`` with the first value to learn from."""
    expected = "a number, 'auto', or 'auto_' and a number above 0"
    if given == "auto":
        return
    if isinstance(given, str) and given.startswith("auto"):
        first = _finite("ent_coef", given, expected, given.removeprefix("auto_"))
        if first <= 0:
            raise ValueError(f"ent_coef={given!r}: give {expected}")
        return
    _finite("ent_coef", given, expected)


def _finite(name: str, given: Any, expected: str, text: Any = None) -> float:
    """Return a setting, which may be the text of a number, as a finite number."""
    try:
        value = float(given if text is None else text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={given!r}: give {expected}") from error
    if not math.isfinite(value):
        raise ValueError(f"{name}={given!r}: give {expected}")
    return value


# ---- after it


def check_values(settings: Mapping[str, Any]) -> dict[str, int]:
    """
    Check the values with which learning would fail in the middle, or learn nothing.

    :param settings: the attributes of an agent that is set up
    :return: the settings that have to be whole numbers, of type ``int``: settings files may have 1e3
    :raises TypeError: for an object of another kind
    :raises ValueError: for a value that learning would fail on
    """
    given = {name: value for name, value in settings.items() if value is not None}
    counts = {"batch_size", "buffer_size", "target_update_interval", "policy_delay"} & set(settings)
    wholes = {name: whole(name, settings[name], 1) for name in counts}
    exploration = {"exploration_fraction", "exploration_initial_eps", "exploration_final_eps"}
    for name in {"gamma", "tau", *exploration} & set(given):
        number(name, given[name], 0.0, 1.0)
    for name in {"target_policy_noise", "target_noise_clip"} & set(given):
        number(name, given[name], 0.0)
    for progress in (1.0, 0.0):  # of training, the begin and the end
        number("learning_rate", given["lr_schedule"](progress), 0.0)
    norm = given.get("max_grad_norm")
    if isinstance(norm, (int, float)) and not norm > 0:  # NaN too; DreamerV3 takes one for each of its networks
        raise ValueError(f"max_grad_norm={norm!r}: give a number above 0")
    noise = given.get("action_noise")
    if noise is not None and not isinstance(noise, ActionNoise):
        raise TypeError(f"action_noise={noise!r}: give an ActionNoise of stable_baselines3.common.noise")
    frequency = given["train_freq"]
    if not isinstance(frequency.frequency, Integral) or frequency.frequency < 1:
        raise ValueError(f"train_freq={frequency!r}: give the steps (or episodes) between two updates, from 1 on")
    steps = settings["gradient_steps"]
    if not isinstance(steps, Real) or not float(steps).is_integer():
        raise ValueError(f"gradient_steps={steps!r}: give the number of updates per train_freq; -1: as many as steps")
    wholes["gradient_steps"] = int(float(steps))
    starts = settings["learning_starts"]
    if not isinstance(starts, Real) or not math.isfinite(starts):
        raise ValueError(f"learning_starts={starts!r}: give the number of real steps before the first update")
    log = given.get("tensorboard_log")
    if log is not None and not isinstance(log, (str, os.PathLike)):
        raise TypeError(f"tensorboard_log={log!r}: give the path of a folder, or None")
    return wholes
