"""The rules of games in which a line of stones wins, on bit boards: TicTacToe, Connect Four and their like."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


class Position(NamedTuple):
    """A position, seen by the player to move. Both are bit boards, in the layout of :class:`LineGame`."""

    own: int
    """The stones of the player to move"""
    other: int
    """The stones of the player who moved last"""


EMPTY = Position(0, 0)
"""The position in which every game begins"""


@dataclass(frozen=True)
class LineGame:
    """
    The rules of a game in which two players place stones in turn, and the first with a line of ``length`` stones wins: in a
    row, in a column or diagonally. A full board without a line is a draw.

    A bit board is an integer with a bit for every square. Columns lie one after the other, each from the bottom up, with a bit
    between two columns that is never set, so that no line runs from one column into the next. TicTacToe and Connect Four::

        2  6 10          5 12 19 26 33 40 47
        1  5  9          4 11 18 25 32 39 46
        0  4  8          ...
                         0  7 14 21 28 35 42

    So neighbours in a column differ by 1, in a row by ``rows + 1``, and on the two kinds of diagonals by ``rows`` and ``rows +
    2``. With ``s`` the stones and ``d`` one of these, ``s & s >> d & s >> 2 d`` has a bit for every line of three.

    Methods ending in ``_many`` do the same for arrays of bit boards ``(B,)`` of type uint64.

    :param rows: the number of rows
    :param columns: the number of columns
    :param length: the number of stones in a line that wins
    :param drops: whether a move names a column, in which the stone falls as far as it can; otherwise it names a square:
        ``row * columns + column``, counted from the top left
    """

    rows: int
    columns: int
    length: int
    drops: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or not 2 <= self.length <= max(self.rows, self.columns):
            raise ValueError(f"{self}: give at least 1 row and column, and a line of at least 2 stones that fits on the board")
        if (self.rows + 1) * self.columns > 64:
            raise ValueError(f"{self}: columns * (rows + 1) is {(self.rows + 1) * self.columns}, and a bit board has 64 bits")

    # ---- the board

    @property
    def n_actions(self) -> int:
        """The number of moves that may be legal: columns or squares"""
        return self.columns if self.drops else self.rows * self.columns

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """The distances between neighbouring bits: in a column, in a row, and on falling and rising diagonals"""
        return 1, self.rows + 1, self.rows, self.rows + 2

    @cached_property
    def squares(self) -> np.ndarray:
        """The bit of every square, uint64 ``(rows, columns)``, the top row first"""
        row, column = np.indices((self.rows, self.columns), np.uint64)
        return np.uint64(1) << (column * np.uint64(self.rows + 1) + np.uint64(self.rows - 1) - row)

    @cached_property
    def full(self) -> int:
        """The bit board on which every square has a stone"""
        return int(self.squares.sum())

    @cached_property
    def _entries(self) -> tuple[int, ...]:
        """The bit of every action's square; of columns, the square at the top, which must be free"""
        return tuple(self.squares[0].tolist() if self.drops else self.squares.ravel().tolist())

    @cached_property
    def _bottoms(self) -> tuple[int, ...]:
        """The bit of the lowest square of every column"""
        return tuple(self.squares[-1].tolist())

    # ---- the rules

    def legal(self, position: Position) -> list[int]:
        """List the legal moves; none when the game is over."""
        if self.won(position):
            return []
        stones = position.own | position.other
        return [action for action, entry in enumerate(self._entries) if not stones & entry]

    def play(self, position: Position, action: int) -> Position:
        """
        Play a move.

        :param position: a position in which the game is not over
        :param action: a legal move
        :return: the position for the next player
        """
        stones = position.own | position.other
        # In a column, adding 1 to the stones from the bottom up carries to the lowest free square.
        bit = (stones & self._column(action)) + self._bottoms[action] if self.drops else self._entries[action]
        return Position(position.other, position.own | bit)

    def won(self, position: Position) -> bool:
        """Whether the player who moved last has a line"""
        return bool(self.has_line(position.other))

    def over(self, position: Position) -> bool:
        """Whether the game is over: won or drawn"""
        return self.won(position) or self.is_full(position)

    def is_full(self, position: Position) -> bool:
        """Whether every square has a stone"""
        return position.own | position.other == self.full

    def ply(self, position: Position) -> int:
        """Count the moves that have been played."""
        return (position.own | position.other).bit_count()

    def has_line(self, stones: Any) -> Any:
        """
        Tell whether stones form a line.

        :param stones: a bit board, or an array of them
        :return: zero where there is no line; otherwise, bits
        """
        lines = stones & 0
        for step in self.steps:
            run = stones
            for n in range(1, self.length):
                run = run & (stones >> (n * step))
            lines = lines | run
        return lines

    def _column(self, action: int) -> int:
        """The squares of a column"""
        return self._bottoms[action] * ((1 << self.rows) - 1)

    # ---- seen from outside

    def mask(self, position: Position) -> np.ndarray:
        """Return which moves are legal, ``(n_actions,)`` booleans."""
        mask = np.zeros(self.n_actions, bool)
        mask[self.legal(position)] = True
        return mask

    def planes(self, position: Position) -> np.ndarray:
        """Return the stones of the player to move and of the other one, float32 ``(2, rows, columns)``."""
        planes = np.empty((2, self.rows, self.columns), np.float32)
        for plane, stones in zip(planes, position, strict=True):
            np.not_equal(self.squares & stones, 0, out=plane)
        return planes

    def position_of(self, planes: np.ndarray) -> Position:
        """Return the position that :meth:`planes` shows."""
        own, other = (int(self.squares[plane > 0].sum()) for plane in planes)
        return Position(own, other)

    def text(self, position: Position) -> str:
        """
        Draw the position: ``X`` for the player who began, ``O`` for the other one, and the numbers of the moves: below the
        columns, or in the free squares.
        """
        first, second = position if self.ply(position) % 2 == 0 else (position.other, position.own)
        width = len(str(self.n_actions - 1))
        lines = []
        for row, bits in enumerate(self.squares.tolist()):
            free = ["." if self.drops else str(row * self.columns + column) for column in range(self.columns)]
            marks = ["X" if bit & first else "O" if bit & second else free[column] for column, bit in enumerate(bits)]
            lines.append(" ".join(mark.rjust(width) for mark in marks))
        if self.drops:
            lines.append(" ".join(str(column).rjust(width) for column in range(self.columns)))
        return "\n".join(lines)

    # ---- many positions at once

    def masks_many(self, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return which moves are legal in every position, ``(B, n_actions)`` booleans."""
        free = (own | other)[:, None] & np.array(self._entries, np.uint64) == 0
        return free & (self.has_line(other) == 0)[:, None]

    def planes_many(self, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the stones of the player to move and of the other one, float32 ``(B, 2, rows, columns)``."""
        return (np.stack([own, other], axis=1)[:, :, None, None] & self.squares != 0).astype(np.float32)

    def play_many(
        self, own: np.ndarray, other: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Play a legal move in every position.

        :param own: ``(B,)``
        :param other: ``(B,)``
        :param actions: ``(B,)``
        :return: ``own`` and ``other`` of the next players; whether the move won; whether the game is over
        """
        if self.drops:
            bottoms = np.array(self._bottoms, np.uint64)[actions]
            bits = ((own | other) & bottoms * np.uint64((1 << self.rows) - 1)) + bottoms
        else:
            bits = np.array(self._entries, np.uint64)[actions]
        moved = own | bits
        won = self.has_line(moved) != 0
        return other, moved, won, won | ((moved | other) == self.full)


TIC_TAC_TOE = LineGame(rows=3, columns=3, length=3)
CONNECT_FOUR = LineGame(rows=6, columns=7, length=4, drops=True)
