"""Players against whole game trees: every sequence of replies, and every position."""

from collections.abc import Sequence
from typing import NamedTuple

from sb3_mbrl.envs.boards.base import BoardEnv
from sb3_mbrl.envs.boards.evaluation import Score
from sb3_mbrl.envs.boards.line_game import EMPTY, LineGame, Position
from sb3_mbrl.envs.boards.minimax import best_moves, solve
from sb3_mbrl.envs.boards.players import Player


class Walk(NamedTuple):
    """The result of a player against every possible sequence of replies."""

    score: Score
    """How these games ended"""
    asked: int
    """The number of different positions in which the player was asked"""
    lost: list[tuple[int, ...]]
    """For every different final position that is lost, the moves of one game that leads to it"""


def walk(player: Player, game: LineGame, seats: Sequence[int] = (0, 1)) -> Walk:
    """
    Walk through the whole game tree: the player makes its move, the opponent makes every legal one. A player that has no loss
    here cannot be beaten by anybody. It must be deterministic: it is asked once per position, all positions of a ply at once.

    :param game: the rules of a game whose tree is small enough; TicTacToe takes about 400 positions
    :param player: the player
    :param seats: the seats to play: 0 begins, 1 replies
    """
    score, asked, lost = Score(), 0, []
    for seat in seats:
        # For every position of this ply: the number of games that lead to it, and the moves of one of them.
        reached: dict[Position, tuple[int, tuple[int, ...]]] = {EMPTY: (1, ())}
        for ply in range(game.rows * game.columns):
            mine = ply % 2 == seat
            positions = list(reached)
            moves = _choices(player, game, positions) if mine else None
            asked += len(positions) if mine else 0
            following: dict[Position, tuple[int, tuple[int, ...]]] = {}
            for number, position in enumerate(positions):
                count, line = reached[position]
                legal = game.legal(position)
                for action in legal if moves is None else [moves[number]]:
                    if action not in legal:
                        score = score.plus(Score(losses=count, illegal=count))
                        lost.append((*line, action))
                        continue
                    after = game.play(position, action)
                    earlier = following.get(after, (0, ()))[0]
                    following[after] = (earlier + count, (*line, action))
            reached = {}
            for position, (count, line) in following.items():
                if not game.over(position):
                    reached[position] = (count, line)
                elif not game.won(position):
                    score = score.plus(Score(draws=count))
                elif mine:
                    score = score.plus(Score(wins=count))
                else:
                    score = score.plus(Score(losses=count))
                    lost.append(line)
    return Walk(score, asked, lost)


def mistakes(player: Player, game: LineGame) -> list[tuple[Position, int]]:
    """
    Ask a player in every position that can be reached and in which the game is not over (4,520 in TicTacToe).

    :return: the positions in which its move does not keep the minimax value, with the move
    """
    positions = [position for position in solve(game) if not game.over(position)]
    chosen = zip(positions, _choices(player, game, positions), strict=True)
    return [(position, move) for position, move in chosen if move not in best_moves(game, position)]


def _choices(player: Player, game: LineGame, positions: Sequence[Position]) -> list[int]:
    """Ask a player in many positions."""
    tables = []
    for position in positions:
        table = BoardEnv(game)
        table.set_position(position)
        tables.append(table)
    return [int(move) for move in player.choose(tables)] if tables else []
