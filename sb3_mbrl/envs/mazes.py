"""The mazes of Sutton and Barto (2018), chapter 8: ``DynaMaze-v0``, ``BlockingMaze-v0`` and ``ShortcutMaze-v0``."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right"""

COLOURS = {".": (255, 255, 255), "#": (90, 90, 90), "S": (190, 215, 255), "G": (120, 200, 120), "o": (220, 90, 60)}

DYNA_MAZE = (
    ".......#G",
    "..#....#.",
    "S.#....#.",
    "..#......",
    ".....#...",
    ".........",
)
"""Example 8.1; the shortest path has 14 steps"""

GAP_RIGHT = ("........G", ".........", ".........", "########.", ".........", "...S.....")
GAP_LEFT = ("........G", ".........", ".........", ".########", ".........", "...S.....")
BOTH_GAPS = ("........G", ".........", ".........", ".#######.", ".........", "...S.....")


class Maze(gym.Env[Any, Any]):
    """
    A grid world. Reaching ``G`` earns a reward of 1 and terminates the episode; all other rewards are 0. Moves into walls and
    edges do nothing.

    The observation is ``row * columns + column``.

    :param layout: the rows of the maze, made of ``.`` (free), ``#`` (wall), ``S`` (start) and ``G`` (goal)
    :param changes: pairs ``(step, layout)``: from that step on, counted over all episodes, the maze has that layout; it may
        change within an episode
    :param render_mode: ``"ansi"``: :meth:`render` returns the maze as text; ``"rgb_array"``: as an image
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        layout: Sequence[str] = DYNA_MAZE,
        changes: Sequence[tuple[int, Sequence[str]]] = (),
        render_mode: str | None = None,
    ) -> None:
        if len({len(row) for row in layout}) != 1:
            raise ValueError("layout: all rows must be of the same length")
        self.layout = list(layout)
        self.rows, self.columns = len(layout), len(layout[0])
        self.changes = sorted((int(step), list(other)) for step, other in changes)
        for _, other in self.changes:
            if [len(row) for row in other] != [self.columns] * self.rows:
                raise ValueError(f"changes: every layout must have {self.rows} rows of {self.columns}, as the first has")
        self.start, self.goal = self._find("S"), self._find("G")
        self.observation_space = spaces.Discrete(self.rows * self.columns)
        self.action_space = spaces.Discrete(len(MOVES))
        self.render_mode = render_mode
        self.steps = 0
        """The number of steps over all episodes"""
        self.position = self.start

    def _find(self, mark: str) -> tuple[int, int]:
        places = [(row, line.index(mark)) for row, line in enumerate(self.layout) if mark in line]
        if len(places) != 1:
            raise ValueError(f"layout: there must be exactly one row with one {mark!r}")
        return places[0]

    def _observation(self) -> int:
        return self.position[0] * self.columns + self.position[1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.start
        return self._observation(), {}

    def step(self, action: int | np.integer) -> tuple[int, float, bool, bool, dict[str, Any]]:
        while self.changes and self.steps >= self.changes[0][0]:
            self.layout = self.changes.pop(0)[1]
        self.steps += 1
        row, column = self.position[0] + MOVES[int(action)][0], self.position[1] + MOVES[int(action)][1]
        if 0 <= row < self.rows and 0 <= column < self.columns and self.layout[row][column] != "#":
            self.position = (row, column)
        over = self.position == self.goal
        return self._observation(), float(over), over, False, {}

    def render(self) -> Any:
        """Draw the maze with the agent in it: as text (``o``), or as an image of 16 x 16 pixels per field."""
        lines = [list(row) for row in self.layout]
        lines[self.position[0]][self.position[1]] = "o"
        if self.render_mode == "ansi":
            return "\n".join("".join(line) for line in lines)
        if self.render_mode == "rgb_array":
            fields = np.array([[COLOURS[mark] for mark in line] for line in lines], np.uint8)
            return fields.repeat(16, axis=0).repeat(16, axis=1)
        return None


def register() -> None:
    """Register the three mazes with Gymnasium; ``import sb3_mbrl`` does it."""
    entry = "sb3_mbrl.envs.mazes:Maze"
    for env_id, kwargs in (
        ("DynaMaze-v0", {"layout": DYNA_MAZE}),
        # Example 8.2: after 1,000 steps the short path is blocked.
        ("BlockingMaze-v0", {"layout": GAP_RIGHT, "changes": ((1_000, GAP_LEFT),)}),
        # Example 8.3: after 3,000 steps a shorter path opens.
        ("ShortcutMaze-v0", {"layout": GAP_LEFT, "changes": ((3_000, BOTH_GAPS),)}),
    ):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry, kwargs=kwargs)
