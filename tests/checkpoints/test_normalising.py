"""The statistics of ``VecNormalize`` in a file; whole checkpoints with them are in ``test_checkpoint_set``."""

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.checkpoints.normalising import load_statistics, save_statistics


def test_settings_and_statistics_return_and_nothing_else(tmp_path):
    env, other = (VecNormalize(make_vec_env("CartPole-v1"), gamma=gamma) for gamma in (0.9, 0.8))
    env.training = False
    save_statistics(env, tmp_path / "n.npz")
    inner = other.venv
    load_statistics(other, tmp_path / "n.npz")
    assert (other.gamma, other.training) == (0.9, False)
    assert other.venv is inner
    (tmp_path / "n.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"n.npz is not a normalisation that can be read"):
        load_statistics(other, tmp_path / "n.npz")
