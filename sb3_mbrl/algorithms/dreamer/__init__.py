"""Dreamer: an actor and a critic that learn in a latent world model's imagination."""

from sb3_mbrl.algorithms.dreamer.v3 import DreamerV3

Dreamer = DreamerV3
"""The newest version of Dreamer"""

__all__ = ["Dreamer", "DreamerV3"]
