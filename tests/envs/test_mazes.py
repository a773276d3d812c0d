"""Mazes: rules and shortest ways."""

import gymnasium as gym
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_mbrl.envs.mazes import DYNA_MAZE, Maze


@pytest.mark.parametrize("env_id", ["DynaMaze-v0", "BlockingMaze-v0", "ShortcutMaze-v0"])
def test_mazes_pass_the_checks(env_id):
    check_env(gym.make(env_id).unwrapped)


def shortest(layout) -> int:
    maze = Maze(layout)
    reached, frontier, steps = {maze.start}, [maze.start], 0
    while maze.goal not in reached:
        steps += 1
        following = []
        for place in frontier:
            for action in range(4):
                maze.position = place
                maze.step(action)
                if maze.position not in reached:
                    reached.add(maze.position)
                    following.append(maze.position)
        frontier = following
    return steps


def test_shortest_ways():
    """Reference study, 6.1 and 6.2."""
    blocking, shortcut = gym.make("BlockingMaze-v0").unwrapped, gym.make("ShortcutMaze-v0").unwrapped
    assert shortest(DYNA_MAZE) == 14
    assert (shortest(blocking.layout), shortest(blocking.changes[0][1])) == (10, 16)
    assert (shortest(shortcut.layout), shortest(shortcut.changes[0][1])) == (16, 10)


def test_the_maze_changes_in_time():
    env = Maze(("S.G",), changes=((2, ("S#G",)),))
    env.reset()
    assert env.step(3)[0] == 1
    env.reset()
    assert env.step(3)[0] == 1, "the second step is before the change"
    env.reset()
    assert env.step(3)[0] == 0
    assert Maze(("S.G",), render_mode="ansi").render() == "o.G"
    picture = Maze(("S.G",), render_mode="rgb_array").render()
    assert picture.shape == (16, 48, 3)
    assert picture[0, 0].tolist() == [220, 90, 60]
    with pytest.raises(ValueError, match="all rows must be of the same length"):
        Maze(("S.", "G"))
    with pytest.raises(ValueError, match="every layout must have 1 rows of 3"):
        Maze(("S.G",), changes=((1, ("SG",)),))
