"""MuZero on Atari: images, SB3's wrapper, a checkpoint. Skipped where the extra ``atari`` is not installed."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.atari_wrappers import AtariWrapper

from sb3_mbrl import MuZero
from tests.algorithms.muzero.agents import small

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")
gym.register_envs(ale_py)


def pong() -> gym.Env:
    """Pong, whose frames are skipped by the wrapper alone, and whose actions are never repeated at random."""
    return AtariWrapper(gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0), screen_size=64)


def agent() -> MuZero:
    settings = {"latent": 8, "units": 16, "depth": 2, "bins": 11, "value_range": 21.0}
    return small(pong(), "CnnPolicy", world_model_kwargs=settings, learning_starts=16, buffer_size=100)


@pytest.fixture(scope="module")
def learned() -> MuZero:
    return agent().learn(40)


def test_pong_is_learned_from(learned):
    before = agent().latent_model.state_dict()
    after = learned.latent_model.state_dict()
    assert learned.num_timesteps == 40
    assert learned._n_updates > 10
    assert learned.observation_space.shape == (1, 64, 64), "channels first"
    assert not th.equal(before["representation.out.weight"], after["representation.out.weight"])
    assert all(bool(value.isfinite().all()) for value in after.values())
    result = learned.search(learned.env.reset())
    assert result.visits.sum() == 4
    assert result.policy.shape == (1, 6)


def test_a_checkpoint_goes_on_where_it_was(learned, tmp_path):
    learned.save(tmp_path / "pong")
    learned.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "pong", env=pong(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    frames = np.random.default_rng(0).integers(256, size=(3, 1, 64, 64), dtype=np.uint8)
    for name in ("action", "policy", "value", "visits"):
        assert np.array_equal(getattr(learned.search(frames), name), getattr(loaded.search(frames), name)), name
    for one in (learned, loaded):
        one.train(3, 8)
    theirs = loaded.latent_model.state_dict()
    assert all(th.equal(value, theirs[name]) for name, value in learned.latent_model.state_dict().items())
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 50
