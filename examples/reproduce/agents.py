"""A run's agent: the class of a variant, and its settings, which are JSON, as arguments of the constructor."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tasks import BASES, Task

from sb3_mbrl.zoo import algorithms


def algorithm(task: Task, variant: str) -> type[OffPolicyAlgorithm]:
    """The class of a variant."""
    cls = algorithms()[task.algo]
    return cls.model_free_class if variant == BASES.get(task.algo) else cls


def as_arguments(settings: Mapping[str, Any], space: gym.Space) -> dict[str, Any]:
    """Action noise in the words of rl-zoo3 (``noise_type`` and ``noise_std``) as SB3's object; the rest as it is."""
    arguments = dict(settings)
    kind = arguments.pop("noise_type", None)
    if kind is not None:
        if kind != "normal" or not isinstance(space, gym.spaces.Box):
            raise ValueError(f"noise_type={kind!r} for {space}: 'normal' for Box actions is what there is")
        size = np.zeros(space.shape)
        arguments["action_noise"] = NormalActionNoise(size, size + arguments.pop("noise_std"))
    return arguments
