"""The agent of a run: the class of a variant, and constructor arguments from its settings (which are JSON)."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from tasks import BASES, Task

from sb3_mbrl.zoo import algorithms


def algorithm(task: Task, variant: str) -> type[OffPolicyAlgorithm]:
    """Find the class of a variant."""
    cls = algorithms()[task.algo]
    return cls.model_free_class if variant == BASES.get(task.algo) else cls


def as_arguments(settings: Mapping[str, Any], space: gym.Space) -> dict[str, Any]:
    """
    Replace rl-zoo3's names with SB3's objects: ``noise_type`` and ``noise_std`` for action noise, and a ``learning_rate``
    such as ``"lin_1e-3"``, which falls linearly to 0. The rest is kept.
    """
    arguments = dict(settings)
    kind = arguments.pop("noise_type", None)
    if kind is not None:
        if kind != "normal" or not isinstance(space, gym.spaces.Box):
            raise ValueError(f"noise_type={kind!r} for {space}: only 'normal' with Box actions is supported")
        size = np.zeros(space.shape)
        arguments["action_noise"] = NormalActionNoise(size, size + arguments.pop("noise_std"))
    rate = arguments.get("learning_rate")
    if isinstance(rate, str):
        arguments["learning_rate"] = LinearSchedule(float(rate.removeprefix("lin_")), 0.0, 1.0)
    return arguments
