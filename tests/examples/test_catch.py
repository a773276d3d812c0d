"""The example that draws the dreams of the README."""

import importlib.util
from pathlib import Path

from PIL import Image

from sb3_mbrl import DreamerV3

FILE = Path(__file__).parents[2] / "examples" / "catch.py"
SPEC = importlib.util.spec_from_file_location("catch_example", FILE)
catch = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(catch)


def test_dreams_are_drawn_side_by_side(tmp_path):
    agent = DreamerV3(
        "CnnPolicy", catch.make_env(), batch_size=2, batch_length=4, learning_starts=10, buffer_size=20, seed=0, device="cpu"
    )
    agent.learn(12)
    path = catch.draw_dreams(agent, [1, 2], tmp_path / "new" / "dream.gif")
    drawn, committed = Image.open(path), Image.open(catch.OUTPUT)
    assert drawn.n_frames == committed.n_frames == catch.CONTEXT + catch.HORIZON
    assert drawn.height == committed.height
    assert committed.width * 2 == drawn.width * 5
