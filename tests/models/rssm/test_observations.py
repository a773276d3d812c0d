"""Which observations are images."""

import warnings

import numpy as np
import pytest
from gymnasium import spaces

from sb3_mbrl.models.rssm.observations import Layout
from tests.models.rssm.small import mixed


def test_spaces_shaped_like_images_are_warned_of():
    """Regression: floats, or bytes with other bounds, became a vector of thousands of values without a warning."""
    for odd in (spaces.Box(0, 1, (3, 16, 16)), spaces.Box(0, 1, (16, 16, 3), np.uint8), spaces.Box(0, 255, (16, 16, 1))):
        with pytest.warns(UserWarning, match=r"view has the shape of an image.*Box\(0, 255, "):
            layout = Layout(spaces.Dict(camera=spaces.Box(0, 255, (3, 16, 16), np.uint8), view=odd))
        assert list(layout.images) == ["camera"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Layout(spaces.Box(0, 1, (10, 5)))
        Layout(spaces.Box(0, 1, (2, 2, 2)))


def test_which_keys_are_images():
    layout = Layout(mixed(3, 16))
    assert layout.images == {"camera": (3, 16, 16)}
    assert layout.codec.dim == 2 + 5 + 2
