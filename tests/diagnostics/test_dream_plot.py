"""Pictures of open-loop predictions."""

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from sb3_mbrl.diagnostics.dream import Dream, dream
from sb3_mbrl.diagnostics.dream_plot import IMAGINED, SEEN, draw_dream, image_frames, strip
from tests.helpers.dreamers import ImageEnv, small


def test_what_was_seen_is_framed_differently():
    real = np.zeros((4, 1, 6, 8), np.uint8)
    imagined = real.copy()
    imagined[3] = 200
    dreamt = Dream({"obs": real}, {"obs": imagined}, np.zeros(3), np.zeros(3), context=2)
    frames = image_frames(dreamt, "obs")
    height, width = 6 * 12 + 6, 8 * 12 + 6
    assert frames.shape == (4, 3 * height, width, 3)
    assert [tuple(frame[0, 0]) for frame in frames] == [SEEN, SEEN, IMAGINED, IMAGINED]
    middle = frames[:, height // 2 :: height, width // 2, 0]
    assert middle.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 200, 200]]
    assert strip(dreamt, "obs", every=2).shape == (3 * height, 2 * width, 3)


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


def test_names_of_pictures(tmp_path, exact):
    dreamt = dream(exact, gym.make("Pendulum-v1"), context=2, horizon=2)
    assert draw_dream(dreamt, tmp_path) == tmp_path / "dream.gif"
    assert draw_dream(dreamt, tmp_path / "noext") == tmp_path / "noext.gif"
    for path, fps, words in ((tmp_path / "x.jpg", 10, "give the name of a .gif"), (tmp_path, 0, "fps=0: give a whole")):
        with pytest.raises(ValueError, match=words):
            draw_dream(dreamt, path, fps=fps)
