"""``VecNormalize`` on the command line: ``--normalize``, and the statistics that belong to a saved agent."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_mbrl.checkpoints.checkpoint_set import NORMALISING
from sb3_mbrl.checkpoints.normalising import load_statistics
from sb3_mbrl.cli.values import UserError

PICKLED = "vecnormalize.pkl"
"""The statistics as SB3's ``VecNormalize.save`` and rl-zoo3 write them: a pickle"""

BEST_STATISTICS = "best_vecnormalize.npz"
"""The statistics at the time of ``best_model.zip``"""

CHOICES = ("both", "obs", "reward")


def normalised(env: VecEnv, normalize: str | None, file: str | None = None, gamma: float = 0.99) -> VecEnv:
    """
    Wrap an environment as ``--normalize`` and ``--vecnormalize`` ask for.

    :param env: the environment of training
    :param normalize: one of :data:`CHOICES`, or ``None``
    :param file: a file with statistics to start from, or ``None``
    :param gamma: the discount, for the statistics of returns
    :raises UserError: for both options, or an environment that cannot be normalised
    """
    if file is not None:
        if normalize is not None:
            raise UserError("--vecnormalize brings its own settings of what is normalised: leave --normalize out")
        return with_statistics(Path(file), env)
    if normalize is None:
        return env
    try:
        return VecNormalize(env, norm_obs=normalize != "reward", norm_reward=normalize != "obs", gamma=gamma)
    except ValueError as error:  # observations that are no Box
        raise UserError(f"--normalize {normalize}: {error}. --normalize reward leaves observations alone.") from error


def choice(env: VecEnv) -> str | None:
    """Tell what an environment normalises: one of :data:`CHOICES`; ``None``: it is no ``VecNormalize``."""
    if not isinstance(env, VecNormalize):
        return None
    return "both" if env.norm_obs and env.norm_reward else "obs" if env.norm_obs else "reward"


def with_statistics(path: Path, env: VecEnv, training: bool = True) -> VecNormalize:
    """
    Wrap an environment in saved statistics.

    :param path: the file of a checkpoint (``.npz``), or one that ``VecNormalize.save`` wrote. That is a pickle: load only what
        you trust
    :param env: the environment
    :param training: whether the statistics go on changing, and rewards are normalised if they were
    :raises UserError: for a file that is missing, or of something else
    """
    if not path.is_file():
        raise UserError(f"there are no statistics {path}")
    try:
        wrapped = _plain(path, env) if path.suffix == ".npz" else VecNormalize.load(str(path), env)
    except Exception as error:  # a damaged or foreign pickle may raise anything
        raise UserError(f"{path} holds no statistics of VecNormalize for {env.observation_space}: {error!r}") from error
    if not training:
        wrapped.training = wrapped.norm_reward = False
    return wrapped


def _plain(path: Path, env: VecEnv) -> VecNormalize:
    """:raises ValueError: for the statistics of other observations"""
    saved = VecNormalize(env, norm_obs=False)
    load_statistics(saved, path)
    keys = list(saved.obs_rms) if saved.norm_obs and isinstance(saved.obs_rms, dict) else None
    wrapped = VecNormalize(env, norm_obs=saved.norm_obs, norm_obs_keys=keys)
    if saved.norm_obs and _shapes(saved.obs_rms) != _shapes(wrapped.obs_rms):
        raise ValueError(f"they are for observations of shape {_shapes(saved.obs_rms)}")
    load_statistics(wrapped, path)
    wrapped.returns = np.zeros(env.num_envs)  # those of the episodes of training
    return wrapped


def _shapes(statistics: Any) -> Any:
    if isinstance(statistics, dict):
        return {key: np.shape(value.mean) for key, value in statistics.items()}
    return np.shape(statistics.mean)


def frozen(env: VecEnv, statistics: VecNormalize) -> VecNormalize:
    """Wrap an environment for evaluation: the same statistics, which stay as they are, and the true rewards."""
    twin = copy.deepcopy(statistics)  # without its environment
    twin.set_venv(env)
    twin.training = twin.norm_reward = False
    return twin


def find_statistics(model: Path, env_id: str | None, given: str | None) -> Path | None:
    """
    Find the statistics that belong to a saved agent.

    :param model: the path of the zip
    :param env_id: the Gymnasium id of the environment: the zoo has them in a folder of this name
    :param given: ``--vecnormalize``
    :raises UserError: when the given file does not exist
    """
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"--vecnormalize {given}: there is no such file")
        return Path(given)
    names: Sequence[str] = (NORMALISING, PICKLED) if env_id is None else (NORMALISING, PICKLED, f"{env_id}/{PICKLED}")
    if model.stem == "best_model":
        names = (BEST_STATISTICS, *names)
    if of_callback := re.fullmatch(r"(.*)_(\d+)_steps", model.stem):  # what SB3's CheckpointCallback writes beside it
        names = ("{}_vecnormalize_{}_steps.pkl".format(*of_callback.groups()), *names)
    return next((model.parent / name for name in names if (model.parent / name).is_file()), None)
