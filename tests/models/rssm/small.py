"""Small RSSMs."""

import numpy as np
from gymnasium import spaces


def vector(n):
    return spaces.Box(-np.inf, np.inf, (n,))


def mixed(channels, side):
    camera = spaces.Box(0, 255, (channels, side, side), np.uint8)
    return spaces.Dict(camera=camera, speed=vector(2), gear=spaces.Discrete(5), lamps=spaces.MultiBinary(2))
