"""Open-loop predictions and their pictures."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_mbrl import MBPO, DreamerV3
from sb3_mbrl.callbacks import DreamCallback
from sb3_mbrl.diagnostics.dream import Dream, dream
from sb3_mbrl.diagnostics.dream_plot import IMAGINED, SEEN, draw_dream, image_frames, strip
from tests.algorithms.common import tiny
from tests.algorithms.dreamer.agents import ImageEnv, small


@pytest.fixture(scope="module")
def exact():
    """An agent whose world model is Pendulum's exact twin."""
    return tiny().learn(60)


def test_a_perfect_model_dreams_what_happens(exact):
    found = dream(exact, gym.make("Pendulum-v1"), context=3, horizon=10)
    assert found.real["obs"].shape == (13, 3)
    np.testing.assert_allclose(found.imagined["obs"], found.real["obs"], atol=2e-3)
    np.testing.assert_allclose(found.imagined_reward[2:], found.real_reward[2:], atol=2e-3)
    assert np.isnan(found.imagined_reward[:2]).all()


def test_mistakes(exact):
    with pytest.raises(ValueError, match="context=0: give at least 1"):
        dream(exact, gym.make("Pendulum-v1"), context=0)
    with pytest.raises(ValueError, match="the episode was over after 200 steps, and the model is to see 201"):
        dream(exact, gym.make("Pendulum-v1"), context=201)
    with pytest.raises(ValueError, match="SAC has no world model"):
        dream(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="has not been fitted yet"):
        dream(MBPO("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), gym.make("Pendulum-v1"))


def test_what_was_seen_is_framed_differently():
    real = np.zeros((4, 1, 6, 8), np.uint8)
    imagined = real.copy()
    imagined[3] = 200
    found = Dream({"obs": real}, {"obs": imagined}, np.zeros(3), np.zeros(3), context=2)
    frames = image_frames(found, "obs")
    height, width = 6 * 12 + 6, 8 * 12 + 6
    assert frames.shape == (4, 3 * height, width, 3)
    assert [tuple(frame[0, 0]) for frame in frames] == [SEEN, SEEN, IMAGINED, IMAGINED]
    middle = frames[:, height // 2 :: height, width // 2, 0]
    assert middle.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 200, 200]]
    assert strip(found, "obs", every=2).shape == (3 * height, 2 * width, 3)


def test_images_and_curves_become_a_gif(exact, tmp_path):
    draw_dream(dream(exact, gym.make("Pendulum-v1"), context=3, horizon=4), tmp_path / "curves.gif")
    with Image.open(tmp_path / "curves.gif") as picture:
        assert picture.n_frames == 7
    agent = small(ImageEnv(), "CnnPolicy", train_freq=20).learn(60)
    draw_dream(dream(agent, ImageEnv(), context=2, horizon=3), tmp_path / "sub" / "images.gif")
    with Image.open(tmp_path / "sub" / "images.gif") as picture:
        assert picture.n_frames == 5
    nothing = Dream({}, {}, np.zeros(1), np.zeros(1), 1)
    draw_dream(nothing, tmp_path / "reward.gif")  # the reward can always be drawn


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


def test_pictures_go_on_in_the_next_learn():
    """There were none after the first learn(), until it had gone on for longer."""

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
    """Training used to end at the first picture."""
    with pytest.raises(TypeError, match=r"one Gymnasium environment of its own, e.g. gym.make\(...\), not .CartPole-v1."):
        DreamCallback("CartPole-v1")
    with pytest.raises(ValueError, match="every=0: give a whole number from 1"):
        DreamCallback(gym.make("CartPole-v1"), every=0)
    agent = small()
    with pytest.raises(ValueError, match="not trained in such an environment: its observations are"):
        agent.learn(10, callback=DreamCallback(gym.make("Acrobot-v1")))
    assert agent.num_timesteps == 0


def test_names_of_pictures(tmp_path, exact):
    found = dream(exact, gym.make("Pendulum-v1"), context=2, horizon=2)
    assert draw_dream(found, tmp_path) == tmp_path / "dream.gif"
    assert draw_dream(found, tmp_path / "noext") == tmp_path / "noext.gif"
    for path, fps, words in ((tmp_path / "x.jpg", 10, "give the name of a .gif"), (tmp_path, 0, "fps=0: give a whole")):
        with pytest.raises(ValueError, match=words):
            draw_dream(found, path, fps=fps)


def test_a_dreamer_is_told_what_it_did():
    """An environment that shows the last action: a model that is told the wrong one cannot follow."""

    class Echo(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.full(1, 2.0 * action - 1, np.float32), 0.0, False, self.t >= 20, {}

    agent = DreamerV3(
        "MlpPolicy",
        Echo(),
        learning_rate=3e-3,
        batch_size=8,
        batch_length=8,
        train_freq=2,
        horizon=2,
        optimizer_kwargs={"warmup": 10},
        world_model_kwargs={"deter": 32, "units": 32, "hidden": 16, "stoch": 4, "classes": 4, "bins": 15},
        policy_kwargs={"bins": 15},
        ent_coef=1.0,  # keep acting at random
        buffer_size=2_000,
        seed=0,
        device="cpu",
    ).learn(500)
    model, action = agent.world_model, np.arange(12) % 2
    import torch as th

    state = model.initial(th.zeros(1, 1))
    found = []
    for choice in action:
        prediction = model.step(state, th.tensor([[choice]]), deterministic=True)
        state = prediction.state
        found.append(float(model.decode(state)))
    np.testing.assert_allclose(found, 2 * action - 1, atol=0.4)
