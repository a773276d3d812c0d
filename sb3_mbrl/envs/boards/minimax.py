"""The exact values of small games, by searching the whole game tree."""

from functools import lru_cache

from sb3_mbrl.envs.boards.line_game import EMPTY, LineGame, Position

MAX_SQUARES = 12
"""The largest board that is solved: each square more takes about three times as long"""


@lru_cache(maxsize=8)
def solve(game: LineGame) -> dict[Position, int]:
    """
    Compute the minimax value of every position that can be reached: with the best play of both sides, 1 if the player to move
    wins, 0 for a draw, -1 if the other one wins. It is the largest of the negative values of the positions after the moves.

    :param game: a game on a small board
    :return: the values by position, for positions in which the game is over too
    :raises ValueError: for a board of more than ``MAX_SQUARES`` squares
    """
    if game.rows * game.columns > MAX_SQUARES:
        raise ValueError(
            f"{game} has {game.rows * game.columns} squares, and the whole game tree is searched for at most {MAX_SQUARES}; "
            "AlphaBetaPlayer plays larger games"
        )
    values: dict[Position, int] = {}

    def value(position: Position) -> int:
        if position not in values:
            following = [-value(game.play(position, action)) for action in game.legal(position)]
            values[position] = max(following) if following else -int(game.won(position))
        return values[position]

    value(EMPTY)
    return values


def best_moves(game: LineGame, position: Position) -> list[int]:
    """
    List the moves that keep the minimax value.

    :param game: a game that :func:`solve` solves
    :param position: a position in which the game is not over
    """
    values = solve(game)
    return [action for action in game.legal(position) if -values[game.play(position, action)] == values[position]]
