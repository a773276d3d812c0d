"""Games between two players, from many openings and both seats."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_mbrl.checks import whole
from sb3_mbrl.envs.boards.base import BoardEnv, TwoPlayerEnv
from sb3_mbrl.envs.boards.line_game import EMPTY, LineGame, Position
from sb3_mbrl.envs.boards.players import Player


class Score(NamedTuple):
    """How games ended, for one of the players. Scores are added with :meth:`plus`."""

    wins: int = 0
    draws: int = 0
    losses: int = 0
    illegal: int = 0
    """The number of losses by an illegal move"""

    @property
    def games(self) -> int:
        """The number of games"""
        return self.wins + self.draws + self.losses

    @property
    def points(self) -> float:
        """The share of points: a win is 1, a draw 1/2"""
        return (self.wins + self.draws / 2) / self.games if self.games else float("nan")

    def plus(self, other: "Score") -> "Score":
        """Return the score of both sets of games."""
        return Score(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __str__(self) -> str:
        text = f"{self.wins} won, {self.draws} drawn, {self.losses} lost of {self.games} ({100 * self.points:.1f} % of points)"
        return text + (f", {self.illegal} lost by an illegal move" if self.illegal else "")


Game = gym.Env | str | Callable[[], gym.Env]
"""An environment of two players (which is reset and stepped), its id, or a function that makes one"""


def play_games(
    player: Player,
    other: Player,
    env: Game,
    openings: Sequence[Sequence[int]] = ((),),
    seats: Sequence[int] = (0, 1),
    repeats: int = 1,
    seed: int | None = None,
) -> Score:
    """
    Play games between two players: every opening from every seat, all side by side, so that an agent is asked once per move
    for all of them.

    :param player: the player whose score is returned
    :param other: the player's opponent
    :param env: the game
    :param openings: sequences of moves that are played first (see :func:`all_openings`); the empty one is the usual beginning
    :param seats: the seats of ``player``: 0 makes the first move of a game, which may be part of the opening; 1 the second
    :param repeats: the number of games per opening and seat, for players that draw random numbers
    :param seed: the seed of both players' random choices; ``None``: they continue
    :return: the player's score
    :raises ValueError: for openings that are not legal, or end the game
    """
    whole("repeats", repeats, 1)
    if not openings or not seats or not set(seats) <= {0, 1}:
        raise ValueError(f"openings={openings}, seats={seats}: give at least one opening, and seats 0, 1 or both")
    if seed is not None:
        player.seed(seed)
        other.seed(seed + 1)
    make = _maker(env)
    seated = [(opening, seat) for opening in openings for seat in seats for _ in range(repeats)]
    tables = [_begin(make, opening, seed) for opening, _ in seated]
    score = Score()
    playing = [(table, seat) for table, (_, seat) in zip(tables, seated, strict=True)]
    while playing:
        for mover, mine in ((player, True), (other, False)):
            asked = [(table, seat) for table, seat in playing if (table.to_move == seat) is mine]
            playing = [(table, seat) for table, seat in playing if (table.to_move == seat) is not mine]
            moves = mover.choose([table for table, _ in asked]) if asked else ()
            for (table, seat), move in zip(asked, moves, strict=True):
                _, _, terminated, truncated, info = table.step(int(move))
                if terminated or truncated:
                    score = score.plus(_result(info, seat))
                else:
                    playing.append((table, seat))
    for table in tables:
        table.close()
    return score


def _maker(env: Game) -> Callable[[], TwoPlayerEnv]:
    """Make a function that returns a new table at every call."""
    if isinstance(env, gym.Env):
        raw = env.unwrapped
        if isinstance(raw, BoardEnv):
            return lambda: BoardEnv(raw.game)
        raise TypeError(f"env={env}: one environment holds one game; give its id, or a function that makes it")

    def make() -> TwoPlayerEnv:
        made = (gym.make(env, disable_env_checker=True) if isinstance(env, str) else env()).unwrapped
        if not isinstance(made, TwoPlayerEnv):
            raise TypeError(f"env={env!r}: {made} is not a game of two players (a TwoPlayerEnv)")
        return made

    return make


def _begin(make: Callable[[], TwoPlayerEnv], opening: Sequence[int], seed: int | None) -> TwoPlayerEnv:
    table = make()
    table.reset(seed=seed)
    for number, move in enumerate(opening, start=1):
        *_, terminated, truncated, info = table.step(move)
        if "illegal" in info:
            raise ValueError(f"openings: in {list(opening)}, move {number}, {move}, is not legal")
        if terminated or truncated:
            raise ValueError(f"openings: the game is over after move {number} of {list(opening)}")
    return table


def _result(info: dict[str, Any], seat: int) -> Score:
    winner = info["winner"]
    if winner is None:
        return Score(draws=1)
    if winner == seat:
        return Score(wins=1)
    return Score(losses=1, illegal=int("illegal" in info))


def all_openings(game: LineGame, plies: int) -> list[tuple[int, ...]]:
    """
    List all sequences of legal moves after which the game is not over: 49 of two plies in Connect Four.

    :param game: the rules
    :param plies: the number of moves
    """
    whole("plies", plies, 0)
    lines: list[tuple[tuple[int, ...], Position]] = [((), EMPTY)]
    for _ in range(plies):
        lines = [
            ((*moves, action), game.play(position, action)) for moves, position in lines for action in game.legal(position)
        ]
    return [moves for moves, position in lines if not game.over(position)]
