"""The package of board games: what it exports and registers."""

import gymnasium as gym
import pytest

from sb3_mbrl.envs import boards


def test_everything_that_is_exported_is_there():
    assert all(hasattr(boards, name) for name in boards.__all__)


@pytest.mark.parametrize("env_id", ["TicTacToe-v0", "ConnectFour-v0", "PettingZoo-v0"])
def test_games_are_registered_once(env_id):
    """``import sb3_mbrl`` registers them; a second call changes nothing."""
    before = gym.spec(env_id)
    boards.register()
    assert gym.spec(env_id).entry_point == before.entry_point
