"""Snapshots of environments: their size, and environments without one."""

import gymnasium as gym

from tests.models.oracles import oracle_of


def test_snapshots_of_small_environments_are_small():
    """Compressed against a fresh copy: FrozenLake's transition table (3 kB) is not in every row."""
    assert oracle_of(gym.make("FrozenLake-v1")).snapshot_size < 600
