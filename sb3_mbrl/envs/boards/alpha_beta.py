"""Alpha-beta search with a fixed depth, for line games whose tree is too large."""

from functools import lru_cache

from sb3_mbrl.envs.boards.line_game import LineGame, Position

WIN = 1_000_000
"""The value of a win at the last ply of the search; earlier ones are worth 1 more per ply"""

BOUND = 2 * WIN
"""Larger than any value"""


@lru_cache(maxsize=16)
def _order(game: LineGame) -> tuple[int, ...]:
    """The moves, from the middle of the board outwards: where the best ones are tried first, most others are cut off"""
    middle = ((game.rows - 1) / 2, (game.columns - 1) / 2)

    def distance(action: int) -> float:
        row, column = (middle[0], action) if game.drops else divmod(action, game.columns)
        return (row - middle[0]) ** 2 + (column - middle[1]) ** 2

    return tuple(sorted(range(game.n_actions), key=distance))


def potential(game: LineGame, stones: int, opposing: int) -> int:
    """
    Count the lines that a player may still complete: those without a stone of the other player. A line with ``k`` stones of
    the player counts ``k ** 2``: 1, 4, 9 and so on.

    :param game: the rules
    :param stones: the bit board of the player
    :param opposing: the bit board of the other player
    """
    open_squares, total = game.full & ~opposing, 0
    for step in game.steps:
        lines = open_squares  # has a bit where a line begins that is still open
        for n in range(1, game.length):
            lines &= open_squares >> (n * step)
        # at_least[k] has a bit for every open line with k stones or more: each stone moves a line from k to k + 1.
        at_least = [lines] + [0] * game.length
        for n in range(game.length):
            stone = stones >> (n * step)
            for k in range(n + 1, 0, -1):
                at_least[k] |= at_least[k - 1] & stone
        # The sum of k^2 over lines: a line with k stones is in at_least[1], ..., at_least[k], and 1 + 3 + ... + (2k-1) = k^2.
        total += sum((2 * k - 1) * at_least[k].bit_count() for k in range(1, game.length + 1))
    return total


def heuristic(game: LineGame, position: Position) -> int:
    """
    Estimate a position in which the game is not over: the difference of :func:`potential` between the player to move and the
    other one.
    """
    return potential(game, position.own, position.other) - potential(game, position.other, position.own)


def alpha_beta(game: LineGame, position: Position, depth: int) -> tuple[int, int]:
    """
    Search a number of plies (Knuth and Moore 1975); positions at this depth have the value of :func:`heuristic`.

    :param game: the rules
    :param position: a position in which the game is not over
    :param depth: the number of plies, at least 1
    :return: the best move, the first of :func:`_order` among equal ones, and its value for the player to move
    """
    legal, best, alpha = game.legal(position), -1, -BOUND
    for action in (move for move in _order(game) if move in legal):
        value = -_value(game, game.play(position, action), depth - 1, -BOUND, -alpha)
        if value > alpha:
            best, alpha = action, value
    return best, alpha


def _value(game: LineGame, position: Position, depth: int, alpha: int, beta: int) -> int:
    """The value of a position if it lies between ``alpha`` and ``beta``; else a bound on it"""
    if game.won(position):
        return -WIN - depth
    if game.is_full(position):
        return 0
    if depth == 0:
        return heuristic(game, position)
    legal = game.legal(position)
    for action in _order(game):
        if action not in legal:
            continue
        alpha = max(alpha, -_value(game, game.play(position, action), depth - 1, -beta, -alpha))
        if alpha >= beta:
            break
    return alpha
