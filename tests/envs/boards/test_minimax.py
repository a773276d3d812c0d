"""Exact values of small games."""

from collections import Counter

import pytest

from sb3_mbrl.envs.boards import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame
from sb3_mbrl.envs.boards.minimax import best_moves, solve


def position(*moves):
    reached = EMPTY
    for move in moves:
        reached = TIC_TAC_TOE.play(reached, move)
    return reached


def test_tic_tac_toe_is_a_draw():
    values = solve(TIC_TAC_TOE)
    assert len(values) == 5_478
    assert values[EMPTY] == 0
    assert best_moves(TIC_TAC_TOE, EMPTY) == list(range(9))


def test_known_positions():
    """After a corner only the middle holds; after two opposite corners and the middle, only the edges; wins and blocks."""
    assert best_moves(TIC_TAC_TOE, position(0)) == [4]
    assert best_moves(TIC_TAC_TOE, position(0, 4, 8)) == [1, 3, 5, 7]
    assert best_moves(TIC_TAC_TOE, position(4)) == [0, 2, 6, 8]
    assert best_moves(TIC_TAC_TOE, position(0, 4, 1)) == [2], "it blocks"
    assert best_moves(TIC_TAC_TOE, position(0, 3, 1, 4)) == [2], "it wins"
    assert solve(TIC_TAC_TOE)[position(0, 1)] == 1, "after a corner, the edge beside it loses"


def test_values_agree_with_their_definition():
    values = solve(TIC_TAC_TOE)
    counts = Counter()
    for reached, value in values.items():
        following = [-values[TIC_TAC_TOE.play(reached, move)] for move in TIC_TAC_TOE.legal(reached)]
        assert value == (max(following) if following else -int(TIC_TAC_TOE.won(reached)))
        counts[value] += not TIC_TAC_TOE.over(reached)
    assert sum(counts.values()) == 4_520


def test_other_games():
    """Two in a row are won with the second stone; nobody makes four in a row on 3 x 4 squares."""
    assert solve(LineGame(2, 2, 2))[EMPTY] == 1
    assert solve(LineGame(2, 4, 4, drops=True))[EMPTY] == 0


def test_large_games_are_refused():
    with pytest.raises(ValueError, match=r"has 42 squares.*at most 12; AlphaBetaPlayer plays larger games"):
        solve(CONNECT_FOUR)
