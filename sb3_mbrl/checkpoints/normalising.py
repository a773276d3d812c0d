"""The statistics of ``VecNormalize`` as plain arrays."""

from pathlib import Path

from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.agent.array_file import read_array_file, write_array_file

_WHAT = "normalisation"

_SAVED = (
    "obs_rms",
    "ret_rms",
    "returns",
    "clip_obs",
    "clip_reward",
    "gamma",
    "epsilon",
    "norm_obs",
    "norm_reward",
    "training",
)


def save_statistics(env: VecNormalize, path: Path) -> None:
    """Write the statistics and settings of an environment."""
    write_array_file(path, {name: value for name, value in vars(env).items() if name in _SAVED}, _WHAT)


def load_statistics(env: VecNormalize, path: Path) -> None:
    """
    Put statistics and settings into an environment. Nothing is unpickled.

    :raises ValueError: for a file that is damaged, or holds something else
    """
    vars(env).update({name: value for name, value in read_array_file(path, _WHAT).items() if name in _SAVED})
