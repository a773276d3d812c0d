"""Rules: known numbers of positions, lines in every direction, and the same for many positions at once."""

import numpy as np
import pytest

from sb3_mbrl.envs.boards import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame, Position
from tests.envs.boards.counting import perft, positions


def after(game, *moves):
    position = EMPTY
    for move in moves:
        assert move in game.legal(position)
        position = game.play(position, move)
    return position


def test_all_positions_of_tic_tac_toe():
    """The known numbers: 5,478 positions, 4,520 before the end; of 255,168 games the first player wins 131,184."""
    reached = positions(TIC_TAC_TOE)
    assert len(reached) == 5_478
    assert sum(not TIC_TAC_TOE.over(position) for position in reached) == 4_520
    assert [perft(TIC_TAC_TOE, plies) for plies in range(10)] == [1, 9, 72, 504, 3024, 15120, 54720, 148176, 200448, 127872]
    ended = [position for position in reached if TIC_TAC_TOE.over(position)]
    by_first = sum(TIC_TAC_TOE.won(position) and TIC_TAC_TOE.ply(position) % 2 == 1 for position in ended)
    by_second = sum(TIC_TAC_TOE.won(position) and TIC_TAC_TOE.ply(position) % 2 == 0 for position in ended)
    assert (by_first, by_second, len(ended) - by_first - by_second) == (626, 316, 16)


def test_games_of_connect_four():
    """The known numbers of sequences of moves; a game can be won from ply 7 on, a column be full from ply 6 on."""
    expected = [1, 7, 49, 343, 2401, 16807, 117649, 823536, 5673234]
    assert [perft(CONNECT_FOUR, plies) for plies in range(9)] == expected


def test_positions_of_connect_four():
    """The known numbers of different positions (sequence A212693 of the OEIS)."""
    frontier, counts = {EMPTY}, []
    for _ in range(7):
        counts.append(len(frontier))
        frontier = {CONNECT_FOUR.play(p, action) for p in frontier for action in CONNECT_FOUR.legal(p)}
    assert counts == [1, 7, 49, 238, 1120, 4263, 16422]


@pytest.mark.parametrize(
    "moves",
    [(0, 6, 0, 6, 0, 6, 0), (0, 0, 1, 1, 2, 2, 3), (0, 1, 1, 2, 2, 3, 2, 3, 3, 0, 3), (6, 5, 5, 4, 4, 3, 4, 3, 3, 6, 3)],
    ids=["column", "row", "rising", "falling"],
)
def test_lines_of_four(moves):
    before, last = after(CONNECT_FOUR, *moves[:-1]), after(CONNECT_FOUR, *moves)
    assert not CONNECT_FOUR.over(before)
    assert CONNECT_FOUR.won(last)
    assert CONNECT_FOUR.legal(last) == []
    assert not CONNECT_FOUR.mask(last).any()


def test_no_line_runs_around_the_edge():
    """Three stones at the top of a column and one at the bottom of the next are no line; nor are rows of two heights."""
    squares = CONNECT_FOUR.squares
    assert not CONNECT_FOUR.has_line(int(squares[0:3, 2].sum()) | int(squares[5, 3]))
    assert CONNECT_FOUR.has_line(int(squares[0:4, 2].sum()))
    wide = LineGame(2, 4, 3)
    assert not wide.has_line(int(wide.squares[0, 2] + wide.squares[0, 3] + wide.squares[1, 0]))


def test_every_line_of_a_game_is_a_line():
    """All 69 lines of four and 8 lines of three, made by coordinates; without one of its stones none is a line."""
    for game, number in ((CONNECT_FOUR, 69), (TIC_TAC_TOE, 8), (LineGame(4, 5, 3), 34)):
        lines = []
        for row in range(game.rows):
            for column in range(game.columns):
                for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    line = [(row + n * down, column + n * right) for n in range(game.length)]
                    if all(0 <= r < game.rows and 0 <= c < game.columns for r, c in line):
                        lines.append([int(game.squares[square]) for square in line])
        assert len(lines) == number
        for line in lines:
            assert game.has_line(sum(line))
            assert not any(game.has_line(sum(line) - stone) for stone in line)


def test_a_full_column_is_not_legal():
    position = after(CONNECT_FOUR, 3, 3, 3, 3, 3, 3)
    assert CONNECT_FOUR.legal(position) == [0, 1, 2, 4, 5, 6]
    assert CONNECT_FOUR.mask(position).tolist() == [True, True, True, False, True, True, True]


def test_a_full_board_is_a_draw():
    position = after(TIC_TAC_TOE, 0, 1, 2, 4, 3, 5, 7, 6, 8)
    assert TIC_TAC_TOE.is_full(position)
    assert TIC_TAC_TOE.over(position)
    assert not TIC_TAC_TOE.won(position)
    assert TIC_TAC_TOE.ply(position) == 9


def test_a_win_with_the_last_stone_is_a_win():
    position = after(TIC_TAC_TOE, 0, 1, 2, 4, 3, 5, 7, 8, 6)
    assert TIC_TAC_TOE.is_full(position)
    assert TIC_TAC_TOE.won(position)


@pytest.mark.parametrize("game", [TIC_TAC_TOE, CONNECT_FOUR, LineGame(7, 8, 5), LineGame(4, 5, 3, drops=True)], ids=str)
def test_many_positions_at_once(game):
    """Random games, side by side, against the same games one by one."""
    rng, batch = np.random.default_rng(0), 60
    own, other = np.zeros(batch, np.uint64), np.zeros(batch, np.uint64)
    singles = [EMPTY] * batch
    for _ in range(game.rows * game.columns):
        masks = game.masks_many(own, other)
        assert masks.tolist() == [game.mask(position).tolist() for position in singles]
        going = masks.any(1)
        actions = np.where(masks, rng.random(masks.shape), -1.0).argmax(1)
        own, other, won, over = (one[going] for one in game.play_many(own, other, actions))
        singles = [game.play(p, int(a)) for p, a, goes in zip(singles, actions, going, strict=True) if goes]
        assert [Position(*map(int, pair)) for pair in zip(own, other, strict=True)] == singles
        assert won.tolist() == [game.won(position) for position in singles]
        assert over.tolist() == [game.over(position) for position in singles]
        planes = game.planes_many(own, other)
        for position, plane in zip(singles, planes, strict=True):
            assert np.array_equal(game.planes(position), plane)
            assert game.position_of(plane) == position
        batch = len(singles)
    assert going.sum() < 60, "some games ended before the board was full"


def test_planes_are_seen_by_the_player_to_move():
    planes = TIC_TAC_TOE.planes(after(TIC_TAC_TOE, 1, 5, 6))
    assert planes.dtype == np.float32
    assert planes.tolist() == [[[0, 0, 0], [0, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 0], [1, 0, 0]]]
    planes = CONNECT_FOUR.planes(after(CONNECT_FOUR, 3, 3, 6))
    assert np.argwhere(planes).tolist() == [[0, 4, 3], [1, 5, 3], [1, 5, 6]]


def test_drawings():
    assert TIC_TAC_TOE.text(after(TIC_TAC_TOE, 4, 0)) == "O 1 2\n3 X 5\n6 7 8"
    lines = CONNECT_FOUR.text(after(CONNECT_FOUR, 3, 3, 2)).splitlines()
    assert lines[:4] == [". . . . . . ."] * 4
    assert lines[4:] == [". . . O . . .", ". . X X . . .", "0 1 2 3 4 5 6"]
    assert LineGame(2, 6, 3).text(after(LineGame(2, 6, 3), 10)) == " 0  1  2  3  4  5\n 6  7  8  9  X 11"


@pytest.mark.parametrize("kwargs", [{"rows": 0}, {"columns": 0}, {"length": 1}, {"length": 9}, {"rows": 8, "columns": 8}])
def test_impossible_boards(kwargs):
    with pytest.raises(ValueError, match=r"give at least 1 row and column|a bit board has 64 bits"):
        LineGame(**{"rows": 4, "columns": 4, "length": 3, **kwargs})
