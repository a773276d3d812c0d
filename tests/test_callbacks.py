"""Dreams as images in TensorBoard."""

import gymnasium as gym
import pytest
from stable_baselines3.common.logger import Logger

from sb3_mbrl.callbacks import DreamCallback
from tests.helpers.dreamers import ImageEnv, small


def test_pictures_for_tensorboard(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # with moviepy
    seen = []

    class Watching(Logger):
        def record(self, key, value, exclude=None):
            seen.append((key, type(value).__name__))

    for env, policy, expected in (
        (ImageEnv(), "CnnPolicy", ("dream/obs", "Image")),
        (ImageEnv(), "CnnPolicy", ("dream/obs_video", "Video")),
        (gym.make("CartPole-v1"), "MlpPolicy", ("dream/curves", "Figure")),
    ):
        agent = small(env, policy, train_freq=20)
        agent.set_logger(Watching(None, []))
        agent.learn(80, callback=DreamCallback(type(env)() if policy == "CnnPolicy" else gym.make("CartPole-v1"), 30, 2, 3))
        assert expected in seen


def test_images_continue_in_the_next_learn():
    """Regression: after a first learn() there were no images until a second one had been longer."""

    class Counting(DreamCallback):
        shown = 0

        def _show(self):
            self.shown += 1

    agent, callback = small(train_freq=20), Counting(gym.make("CartPole-v1"), 30)
    agent.learn(100, callback=callback)
    assert callback.shown == 2  # at 60, 90; at 30 there was no model yet
    agent.learn(100, callback=callback)
    assert callback.shown == 2 + 3


def test_a_callback_that_cannot_work():
    """Regression: training ended with an error at the first image."""
    with pytest.raises(TypeError, match=r"one Gymnasium environment of its own, e.g. gym.make\(...\), not .CartPole-v1."):
        DreamCallback("CartPole-v1")
    with pytest.raises(ValueError, match="every=0: give a whole number from 1"):
        DreamCallback(gym.make("CartPole-v1"), every=0)
    agent = small()
    with pytest.raises(ValueError, match="not trained in such an environment: its observations are"):
        agent.learn(10, callback=DreamCallback(gym.make("Acrobot-v1")))
    assert agent.num_timesteps == 0
