"""Alpha-beta search: the same as plain minimax, on the same heuristic; wins and blocks."""

import numpy as np
import pytest

from sb3_mbrl.envs.boards import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame
from sb3_mbrl.envs.boards.alpha_beta import WIN, alpha_beta, heuristic, potential
from sb3_mbrl.envs.boards.minimax import best_moves, solve


def after(game, *moves):
    position = EMPTY
    for move in moves:
        position = game.play(position, move)
    return position


def random_positions(game, number):
    rng, positions = np.random.default_rng(0), []
    while len(positions) < number:
        position = EMPTY
        for _ in range(rng.integers(1, game.rows * game.columns)):
            if game.over(position):
                break
            position = game.play(position, int(rng.choice(game.legal(position))))
        if not game.over(position):
            positions.append(position)
    return positions


def all_lines(game):
    """All lines as lists of bits, by coordinates."""
    for row in range(game.rows):
        for column in range(game.columns):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                line = [(row + n * down, column + n * right) for n in range(game.length)]
                if all(0 <= r < game.rows and 0 <= c < game.columns for r, c in line):
                    yield [int(game.squares[square]) for square in line]


@pytest.mark.parametrize("game", [TIC_TAC_TOE, CONNECT_FOUR, LineGame(5, 6, 5)], ids=str)
def test_the_heuristic_is_what_it_says(game):
    """The squares of the numbers of stones, over all lines without a stone of the other player."""
    lines = list(all_lines(game))
    for position in random_positions(game, 30):
        expected = {}
        for mine, theirs in ((position.own, position.other), (position.other, position.own)):
            expected[mine] = sum(sum(bool(bit & mine) for bit in line) ** 2 for line in lines if not sum(line) & theirs)
            assert potential(game, mine, theirs) == expected[mine]
        assert heuristic(game, position) == expected[position.own] - expected[position.other]


def test_known_values_of_the_heuristic():
    """The middle square is part of 4 lines, a corner of 3; at the bottom of the middle column, of 7 lines of four."""
    assert heuristic(TIC_TAC_TOE, after(TIC_TAC_TOE, 4)) == -4
    assert heuristic(TIC_TAC_TOE, after(TIC_TAC_TOE, 0)) == -3
    assert heuristic(CONNECT_FOUR, after(CONNECT_FOUR, 3)) == -7
    assert heuristic(CONNECT_FOUR, after(CONNECT_FOUR, 0)) == -3
    assert heuristic(CONNECT_FOUR, EMPTY) == 0


def plain(game, position, depth):
    """Minimax without cuts."""
    if game.won(position):
        return -WIN - depth
    if game.is_full(position):
        return 0
    if depth == 0:
        return heuristic(game, position)
    return max(-plain(game, game.play(position, move), depth - 1) for move in game.legal(position))


@pytest.mark.parametrize("game", [TIC_TAC_TOE, CONNECT_FOUR], ids=str)
def test_cuts_change_nothing(game):
    for position in random_positions(game, 12):
        for depth in (1, 2, 3):
            move, value = alpha_beta(game, position, depth)
            assert value == plain(game, position, depth)
            assert -plain(game, game.play(position, move), depth - 1) == value


def test_a_search_to_the_end_is_exact():
    """In 100 positions of TicTacToe, values of the right sign, and moves that keep them."""
    for position in random_positions(TIC_TAC_TOE, 100):
        move, value = alpha_beta(TIC_TAC_TOE, position, 9)
        assert np.sign(value) == solve(TIC_TAC_TOE)[position]
        assert move in best_moves(TIC_TAC_TOE, position)


def test_it_wins_at_once_and_blocks():
    assert alpha_beta(CONNECT_FOUR, after(CONNECT_FOUR, 0, 6, 0, 6, 0, 5), 4) == (0, WIN + 3)
    assert alpha_beta(CONNECT_FOUR, after(CONNECT_FOUR, 0, 6, 0, 6, 3, 6), 4)[0] == 6
    # Two stones in the middle of the bottom row, open on both sides: the reply is to one of the sides.
    assert alpha_beta(CONNECT_FOUR, after(CONNECT_FOUR, 3, 3, 2), 4)[0] in (1, 4)


def test_of_equal_moves_it_takes_the_one_nearest_to_the_middle():
    assert alpha_beta(CONNECT_FOUR, EMPTY, 1)[0] == 3
    assert alpha_beta(TIC_TAC_TOE, EMPTY, 1)[0] == 4


def test_a_lost_position_has_a_move():
    """Named after a fault: where every move loses, none was better than the bound, and the move was -1."""
    lost = after(CONNECT_FOUR, 3, 3, 2, 2, 4)  # 1 and 5 both win
    move, value = alpha_beta(CONNECT_FOUR, lost, 4)
    assert move in CONNECT_FOUR.legal(lost)
    assert value == -WIN - 2
