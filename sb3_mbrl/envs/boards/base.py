"""Games of two players as Gymnasium environments in which every step is a move of the player whose turn it is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_mbrl.envs.boards.line_game import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame, Position

SQUARE = 32
"""The side of a square of the board in pixels, in images"""

BOARD_COLOUR = np.array((40, 70, 140), np.uint8)
COLOURS = np.array(((235, 235, 235), (220, 90, 60), (240, 200, 60)), np.uint8)
"""The colours of a free square, of the stones of the player who began, and of the other one's"""


class TwoPlayerEnv(gym.Env[Any, Any], ABC):
    """
    A game of two players who move in turn and whose rewards add up to zero. :meth:`step` plays for the player whose turn it
    is, and returns the reward of that player and the observation of the next one; the other player's reward is its negative.
    So the return of a player is a sum with alternating signs: a discount of ``-gamma``.

    ``info["player"]`` is the player to move, 0 or 1, as in :attr:`to_move`. An illegal move ends the game, with a reward of -1
    for the player who made it and ``info["illegal"]``: :meth:`action_masks` says which moves are legal. When a game has ended,
    ``info["winner"]`` is 0, 1, or ``None`` for a draw.
    """

    turns: ClassVar[int] = 2
    """The number of players who move in turn"""
    action_space: spaces.Discrete

    @property
    @abstractmethod
    def to_move(self) -> int:
        """The player whose turn it is: 0 or 1"""

    @abstractmethod
    def action_masks(self) -> np.ndarray:
        """Return which moves are legal, ``(n_actions,)`` booleans; none when the game is over."""

    @abstractmethod
    def observe(self) -> Any:
        """Return the observation of the player to move."""

    def describe(self, action: int) -> str:
        """Name a move, for people."""
        return f"move {action}"

    def text(self) -> str:
        """Draw the game as text: as it renders itself, or else its observation."""
        return str(self.render() if self.render_mode == "ansi" else self.observe())


def whole_action(env: TwoPlayerEnv, action: Any) -> int:
    """
    Convert a move to a number.

    :raises ValueError: for anything but a member of the action space
    """
    if isinstance(action, (int, np.integer)) and 0 <= action < env.action_space.n:
        return int(action)
    number = np.asarray(action)
    if number.size != 1 or not np.issubdtype(number.dtype, np.integer) or not 0 <= number.item() < env.action_space.n:
        raise ValueError(f"action={action!r}: give a whole number from 0 to {env.action_space.n - 1}")
    return int(number.item())


class BoardEnv(TwoPlayerEnv):
    """
    A :class:`~sb3_mbrl.envs.boards.LineGame` as an environment. Observations are float32 planes ``(2, rows, columns)``: the
    stones of the player to move, and those of the other one. The move that completes a line is rewarded with 1, all others
    with 0.

    ``reset(options={"moves": [4, 0]})`` begins after these moves.

    :param game: the rules
    :param render_mode: ``"ansi"``: :meth:`render` returns the board as text; ``"rgb_array"``: as an image
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}  # noqa: RUF012  (Gymnasium's)

    def __init__(self, game: LineGame, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: boards are drawn as text ('ansi') or as images ('rgb_array')")
        self.game, self.render_mode = game, render_mode
        self.observation_space = spaces.Box(0.0, 1.0, (2, game.rows, game.columns), np.float32)
        self.action_space = spaces.Discrete(game.n_actions)
        self.position = EMPTY
        """The position, seen by the player to move"""
        self._forfeited = False

    @property
    def to_move(self) -> int:
        return self.game.ply(self.position) % 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Begin a game.

        :param options: ``{"moves": [...]}`` plays these moves first
        :raises ValueError: for moves that are not legal, or that end the game
        """
        super().reset(seed=seed)
        moves = (options or {}).get("moves", ())
        self.set_position(self._after(moves))
        return self.observe(), {"player": self.to_move}

    def _after(self, moves: Sequence[int]) -> Position:
        position = EMPTY
        for number, move in enumerate(moves, start=1):
            if whole_action(self, move) not in self.game.legal(position):
                raise ValueError(f"options={{'moves': {list(moves)}}}: move {number}, {move}, is not legal there")
            position = self.game.play(position, int(move))
        if self.game.over(position):
            raise ValueError(f"options={{'moves': {list(moves)}}}: the game is over after these moves")
        return position

    def set_position(self, position: Position) -> None:
        """Continue from a position in which the game may be over."""
        self.position, self._forfeited = position, False

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Play a move for the player whose turn it is.

        :return: the next player's observation, the reward of the player who moved, whether the game is over, ``False``, and
            the information of :class:`TwoPlayerEnv`
        :raises ValueError: for an action outside the space
        :raises gymnasium.error.ResetNeeded: when the game is over
        """
        move, player = whole_action(self, action), self.to_move
        legal = [] if self._forfeited else self.game.legal(self.position)
        if not legal:
            raise gym.error.ResetNeeded(f"{type(self).__name__}: the game is over; call reset() to begin another one")
        if move not in legal:
            self._forfeited = True
            return self.observe(), -1.0, True, False, {"player": player, "winner": 1 - player, "illegal": True}
        self.position = self.game.play(self.position, move)
        won = self.game.won(self.position)
        over = won or self.game.is_full(self.position)
        info = {"player": self.to_move, **({"winner": player if won else None} if over else {})}
        return self.observe(), float(won), over, False, info

    def action_masks(self) -> np.ndarray:
        return np.zeros(self.game.n_actions, bool) if self._forfeited else self.game.mask(self.position)

    def observe(self) -> np.ndarray:
        return self.game.planes(self.position)

    def describe(self, action: int) -> str:
        """Name a move: the column, or the square with its row and column from the top left, counted from 0."""
        if self.game.drops:
            return f"column {action}"
        row, column = divmod(action, self.game.columns)
        return f"{action}: row {row}, column {column}"

    def text(self) -> str:
        """Draw the board; see :meth:`LineGame.text`."""
        return self.game.text(self.position)

    def render(self) -> Any:
        """Draw the board: as text (see :meth:`LineGame.text`), or as an image of 32 x 32 pixels per square."""
        if self.render_mode == "ansi":
            return self.text()
        if self.render_mode == "rgb_array":
            return self._image()
        return super().render()

    def _image(self) -> np.ndarray:
        stones = self.observe().astype(np.uint8)
        first, second = stones if self.to_move == 0 else stones[::-1]
        of_squares = (first + 2 * second).repeat(SQUARE, axis=0).repeat(SQUARE, axis=1)
        # Every square shows a disc, whose centre is the middle of the square; free squares show an empty one.
        from_centre = np.arange(SQUARE) - (SQUARE - 1) / 2
        disc = from_centre[:, None] ** 2 + from_centre**2 < (0.4 * SQUARE) ** 2
        return np.where(np.tile(disc, first.shape)[..., None], COLOURS[of_squares], BOARD_COLOUR)

    # ---- snapshots (sb3_mbrl.envs.snapshots), and what an oracle may ask beyond them

    def snapshot(self) -> np.ndarray:
        """Return the state as numbers: both bit boards in two halves each, and whether the game was forfeited."""
        return _as_numbers(self.position, self._forfeited)

    def restore(self, snapshot: np.ndarray) -> None:
        """Restore the result of :meth:`snapshot`."""
        high, low, other_high, other_low, forfeited = (int(number) for number in snapshot)
        self.position = Position((high << 32) + low, (other_high << 32) + other_low)
        self._forfeited = bool(forfeited)

    def snapshot_of(self, observation: np.ndarray) -> np.ndarray:
        """
        Find the snapshot in an observation.

        :param observation: ``(2, rows, columns)``
        :return: ``(5,)``
        """
        return _as_numbers(self.game.position_of(observation))

    def step_many(self, snapshots: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Play a move in each of ``B`` games that are not over; this environment's own game stays as it is.

        :param snapshots: ``(B, 5)``
        :param actions: ``(B,)`` integers
        :return: the new snapshots, the observations of the next players ``(B, 2, rows, columns)``, the rewards ``(B,)`` of
            those who moved, and whether the games have ended ``(B,)``
        """
        own, other = _bit_boards(snapshots)
        moves = np.asarray(actions, np.int64)
        legal = self.game.masks_many(own, other)[np.arange(len(moves)), moves]
        following, moved, won, over = self.game.play_many(own, other, moves)
        own, other = np.where(legal, following, own), np.where(legal, moved, other)
        reward = np.where(legal, won.astype(np.float64), -1.0)  # an illegal move forfeits the game
        halves = [np.stack([board >> np.uint64(32), board & np.uint64(0xFFFFFFFF)], 1) for board in (own, other)]
        new = np.concatenate([*halves, ~legal[:, None]], 1).astype(np.float64)
        return new, self.game.planes_many(own, other), reward, over | ~legal

    def action_masks_many(self, snapshots: np.ndarray) -> np.ndarray:
        """Return the legal moves of ``B`` games, ``(B, n_actions)`` booleans; none where the game is over."""
        return self.game.masks_many(*_bit_boards(snapshots)) & (snapshots[:, 4] == 0)[:, None]


def _as_numbers(position: Position, forfeited: bool = False) -> np.ndarray:
    """Return the snapshot of a position, ``(5,)``."""
    # A float64 holds whole numbers of 53 bits exactly, and a bit board may have 64.
    return np.array([half for board in position for half in divmod(board, 1 << 32)] + [forfeited], np.float64)


def _bit_boards(snapshots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bit boards of the players to move and of the others, ``(B,)`` uint64 each, from snapshots ``(B, 5)``."""
    halves = snapshots.astype(np.uint64)
    own, other = (halves[:, 2 * i] << np.uint64(32) | halves[:, 2 * i + 1] for i in range(2))
    return own, other


class TicTacToe(BoardEnv):
    """
    The environment ``TicTacToe-v0``: three stones in a line on 3 x 3 squares. The action is the square, row by row from the
    top left. Played without mistakes, it is a draw.

    :param render_mode: ``"ansi"``: :meth:`render` returns the board as text; ``"rgb_array"``: as an image
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(TIC_TAC_TOE, render_mode)


class ConnectFour(BoardEnv):
    """
    The environment ``ConnectFour-v0``: stones fall into 7 columns of 6 squares, and four in a line win. The action is the
    column. Played without mistakes, the player who begins wins (Allis 1988).

    :param render_mode: ``"ansi"``: :meth:`render` returns the board as text; ``"rgb_array"``: as an image
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CONNECT_FOUR, render_mode)


def register() -> None:
    """Register ``TicTacToe-v0`` and ``ConnectFour-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    for env_id, name in (("TicTacToe-v0", "TicTacToe"), ("ConnectFour-v0", "ConnectFour")):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=f"sb3_mbrl.envs.boards.base:{name}")
