"""The whole game tree: a player that cannot be beaten, one that can, and counts by hand."""

import pytest

from sb3_mbrl.envs.boards import (
    CONNECT_FOUR,
    EMPTY,
    TIC_TAC_TOE,
    AgentPlayer,
    AlphaBetaPlayer,
    LineGame,
    Player,
    Score,
    mistakes,
    walk,
)
from sb3_mbrl.envs.boards.minimax import best_moves, solve
from tests.envs.boards.toy_agents import Exact, FirstSquare


class First(Player):
    """A player of the first legal move."""

    def __init__(self):
        super().__init__("first")

    def choose(self, tables):
        return [int(table.action_masks().argmax()) for table in tables]


def test_a_perfect_player_is_never_beaten():
    agent = Exact(TIC_TAC_TOE)
    result = walk(AgentPlayer(agent), TIC_TAC_TOE)
    assert result.score.losses == 0
    assert result.lost == []
    assert result.score.wins > 0
    assert result.asked == sum(size for size, _ in agent.batches)
    assert len(agent.batches) == 9, "once per ply: five times when it begins, four times when it replies"
    assert mistakes(AgentPlayer(agent), TIC_TAC_TOE) == []
    assert agent.batches[-1] == (4_520, True)


def games(player, game, position, seat, ply=0):
    """Count the games against every reply, one by one."""
    if game.over(position):
        if not game.won(position):
            return Score(draws=1)
        return Score(wins=1) if (ply - 1) % 2 == seat else Score(losses=1)
    mine = ply % 2 == seat
    moves = [game.legal(position)[0]] if mine else game.legal(position)
    total = Score()
    for move in moves:
        total = total.plus(games(player, game, game.play(position, move), seat, ply + 1))
    return total


@pytest.mark.parametrize("game", [TIC_TAC_TOE, LineGame(3, 3, 3, drops=True)], ids=str)
def test_counts_are_those_of_every_game_one_by_one(game):
    for seat in (0, 1):
        result = walk(First(), game, [seat])
        assert result.score == games(First(), game, EMPTY, seat)
        assert result.score.losses > 0
        assert bool(result.lost)
    assert walk(First(), game).score == games(First(), game, EMPTY, 0).plus(games(First(), game, EMPTY, 1))


def test_lost_games_can_be_replayed():
    for line in walk(First(), TIC_TAC_TOE).lost:
        position = EMPTY
        for move in line:
            assert move in TIC_TAC_TOE.legal(position)
            position = TIC_TAC_TOE.play(position, move)
        assert TIC_TAC_TOE.won(position)


def test_one_blunder_is_found():
    """A position off the player's own path is a mistake, but loses no game; on its path, it does both."""
    corner = TIC_TAC_TOE.play(EMPTY, 0)  # only the middle holds
    agent = Exact(TIC_TAC_TOE, {corner: 1})
    assert mistakes(AgentPlayer(agent), TIC_TAC_TOE) == [(corner, 1)]
    result = walk(AgentPlayer(agent), TIC_TAC_TOE)
    assert result.score.losses > 0
    assert all(line[:2] == (0, 1) for line in result.lost)
    off = next(p for p in solve(TIC_TAC_TOE) if TIC_TAC_TOE.ply(p) == 3 and len(best_moves(TIC_TAC_TOE, p)) == 1 and p.own & 1)
    wrong = next(move for move in TIC_TAC_TOE.legal(off) if move not in best_moves(TIC_TAC_TOE, off))
    assert mistakes(AgentPlayer(Exact(TIC_TAC_TOE, {off: wrong})), TIC_TAC_TOE) == [(off, wrong)]


def test_illegal_moves_are_losses():
    result = walk(AgentPlayer(FirstSquare()), TIC_TAC_TOE)
    assert result.score.losses == result.score.illegal == result.score.games
    # It begins: 8 replies, and then square 0 again. It replies: at once where square 0 is taken, else at the second move,
    # after 8 first moves and 7 second ones.
    assert result.score.games == 8 + 1 + 8 * 7


def test_alpha_beta_to_the_end_is_perfect():
    assert walk(AlphaBetaPlayer(9), TIC_TAC_TOE, [1]).score.losses == 0


def test_large_trees_are_refused():
    with pytest.raises(ValueError, match="has 42 squares"):
        mistakes(First(), CONNECT_FOUR)
