"""SB3's and sb3-contrib's own zips on the command line: which class saved them, and loading them."""

from importlib import import_module
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_mbrl.agent.checkpoint import STATE
from sb3_mbrl.agent.zip_file import saved_attributes
from sb3_mbrl.cli.values import UserError

CLASSES = {
    **dict.fromkeys(("SAC", "TD3", "DDPG", "DQN", "PPO", "A2C"), "stable_baselines3"),
    **dict.fromkeys(("TQC", "CrossQ", "QRDQN", "TRPO", "ARS", "MaskablePPO", "RecurrentPPO"), "sb3_contrib"),
}
"""The packages of the model-free classes"""

NAMES = {name.lower(): name for name in CLASSES} | {"ppo_mask": "MaskablePPO", "ppo_lstm": "RecurrentPPO"}
"""The model-free classes by their names on command lines, with the zoo's"""

_MODULES = {
    "maskable": "MaskablePPO",
    "recurrent": "RecurrentPPO",
    "qrdqn": "QRDQN",
    "ars.": "ARS",
    "tqc": "TQC",
    "crossq": "CrossQ",
    ".sac": "SAC",
    ".td3": "TD3",
    ".dqn": "DQN",
}
"""The classes by a part of the name of their policy's module; DDPG's files are TD3's too"""

_TELLING = {
    "top_quantiles_to_drop_per_net": "TQC",
    "target_policy_noise": "TD3",
    "policy_delay": "CrossQ",
    "target_entropy": "SAC",
    "exploration_rate": "DQN",
    "cg_max_steps": "TRPO",
    "clip_range": "PPO",
    "delta_std": "ARS",
    "gae_lambda": "A2C",
}
"""The classes by an attribute that only they have, the first that is there; for policies of users"""


def is_model_free(path: Path) -> bool:
    """
    Tell whether a zip was saved by a class without a world model.

    :raises UserError: for a file that is no agent
    """
    try:
        return STATE not in saved_attributes(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_model_free(path: Path, algo: str | None, **kwargs: Any) -> BaseAlgorithm:
    """
    Load an agent that SB3 or sb3-contrib saved. Such a file is unpickled: load only what you trust.

    :param path: the path of the zip
    :param algo: the name of the class, such as ``"sac"``; ``None``: guessed from the file
    :param kwargs: the other arguments of ``load``
    :raises UserError: when the class is not known, not installed, or another one
    """
    name = NAMES.get(algo.lower()) if algo else guess(path)
    if name is None:
        which = f"--algo {algo}: it is none of these" if algo else f"{path} does not say which class saved it"
        raise UserError(f"{which}: {', '.join(sorted(NAMES))}")
    try:
        cls = getattr(import_module(CLASSES[name]), name)
    except ImportError as error:
        raise UserError(f"{path} was saved by {name}: {error}. Run `pip install sb3-contrib`.") from error
    try:
        return cls.load(path, **kwargs)
    except Exception as error:  # whatever unpickling a foreign file raises
        raise UserError(f"{path} cannot be loaded as {name}: {' '.join(str(error).split())}") from error


def guess(path: Path) -> str | None:
    """Guess the class of a file from its policy and its attributes, unpickling nothing; ``None``: it is none of SB3's."""
    saved = saved_attributes(path)
    policy = saved.get("policy_class")
    module = str(policy.get("__module__", "")) if isinstance(policy, dict) else ""
    if module.startswith(("stable_baselines3.", "sb3_contrib.")):
        for part, name in _MODULES.items():
            if part in module:
                return name
    return next((name for attribute, name in _TELLING.items() if attribute in saved), None)
