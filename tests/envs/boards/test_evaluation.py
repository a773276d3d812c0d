"""Games between players: counts, seats, openings, batches."""

import gymnasium as gym
import pytest

import sb3_mbrl  # noqa: F401  (registers the boards)
from sb3_mbrl.envs.boards import (
    CONNECT_FOUR,
    TIC_TAC_TOE,
    AgentPlayer,
    AlphaBetaPlayer,
    PerfectPlayer,
    RandomPlayer,
    Score,
    TicTacToe,
    TwoPlayerAEC,
    all_openings,
    play_games,
)
from tests.envs.boards.fake_aec import Race
from tests.envs.boards.toy_agents import Exact, FirstSquare


def test_perfect_players_draw():
    score = play_games(PerfectPlayer(), PerfectPlayer(), "TicTacToe-v0", repeats=20, seed=0)
    assert score == Score(wins=0, draws=40, losses=0)
    assert score.points == 0.5


def test_a_perfect_player_does_not_lose_against_a_random_one():
    score = play_games(PerfectPlayer(), RandomPlayer(), "TicTacToe-v0", repeats=25, seed=0)
    assert (score.losses, score.games, score.illegal) == (0, 50, 0)
    assert score.wins > 35


def test_random_players_of_tic_tac_toe():
    """The known chances of random play: 58.5 % for the player who begins, 28.8 % for the other one, 12.7 % draws."""
    score = play_games(RandomPlayer(), RandomPlayer(), "TicTacToe-v0", seats=[0], repeats=1_500, seed=0)
    assert [score.wins / 1_500, score.losses / 1_500, score.draws / 1_500] == pytest.approx([0.585, 0.288, 0.127], abs=0.04)


def test_the_score_is_the_players_from_either_seat():
    """The same games, seen from both sides."""
    strong, weak = AlphaBetaPlayer(3), AlphaBetaPlayer(1)
    openings = all_openings(TIC_TAC_TOE, 1)
    score = play_games(strong, weak, "TicTacToe-v0", openings)
    mirrored = play_games(weak, strong, "TicTacToe-v0", openings)
    assert score.games == 18
    assert (score.wins, score.draws, score.losses) == (mirrored.losses, mirrored.draws, mirrored.wins)
    assert score == play_games(strong, weak, "TicTacToe-v0", openings, seats=[0]).plus(
        play_games(strong, weak, "TicTacToe-v0", openings, seats=[1])
    )


def test_side_by_side_is_one_by_one():
    players, openings = (AlphaBetaPlayer(2), AlphaBetaPlayer(1)), all_openings(CONNECT_FOUR, 1)
    together = play_games(*players, "ConnectFour-v0", openings)
    alone = Score()
    for opening in openings:
        for seat in (0, 1):
            alone = alone.plus(play_games(*players, "ConnectFour-v0", [opening], seats=[seat]))
    assert together == alone
    assert together.games == 14


def test_an_agent_is_asked_once_per_move_of_all_games():
    agent = Exact(TIC_TAC_TOE)
    play_games(AgentPlayer(agent), RandomPlayer(), "TicTacToe-v0", repeats=10, seed=0)
    assert agent.batches[0] == (10, True), "the games in which it begins"
    assert agent.batches[1] == (20, True), "all games"
    assert len(agent.batches) <= 9


def test_the_seat_counts_from_the_beginning_of_the_game():
    """After one stone, the player who began the game is the one who has played it, whoever moves now."""
    won_by_next = (0, 3, 1, 4)  # player 0 wins with 2
    score = play_games(AlphaBetaPlayer(1), AlphaBetaPlayer(1), "TicTacToe-v0", [won_by_next], seats=[0])
    assert score == Score(wins=1)
    assert play_games(AlphaBetaPlayer(1), AlphaBetaPlayer(1), "TicTacToe-v0", [won_by_next], seats=[1]) == Score(losses=1)


def test_illegal_moves_are_losses():
    score = play_games(AgentPlayer(FirstSquare()), RandomPlayer(), "TicTacToe-v0", seats=[0], repeats=5, seed=0)
    assert score == Score(losses=5, illegal=5)
    assert str(score) == "0 won, 0 drawn, 5 lost of 5 (0.0 % of points), 5 lost by an illegal move"
    assert play_games(RandomPlayer(), AgentPlayer(FirstSquare()), "TicTacToe-v0", seats=[1], repeats=5, seed=0) == Score(
        wins=5
    )


def test_the_same_seed_the_same_games():
    scores = {play_games(RandomPlayer(), RandomPlayer(), "ConnectFour-v0", repeats=30, seed=seed) for seed in (0, 0, 1, 2)}
    assert len(scores) > 1
    assert len({play_games(RandomPlayer(), RandomPlayer(), "ConnectFour-v0", repeats=30, seed=0) for _ in range(3)}) == 1


@pytest.mark.parametrize(
    "env",
    [TicTacToe(), gym.make("TicTacToe-v0"), TicTacToe, lambda: gym.make("TicTacToe-v0")],
    ids=["env", "made", "class", "f"],
)
def test_games_are_given_in_any_form(env):
    assert play_games(PerfectPlayer(), PerfectPlayer(), env, seed=0) == Score(draws=2)


def test_openings():
    """49 of two plies in Connect Four, none excluded; the known numbers of TicTacToe."""
    openings = all_openings(CONNECT_FOUR, 2)
    assert len(openings) == len(set(openings)) == 49
    assert all_openings(CONNECT_FOUR, 0) == [()]
    assert [len(all_openings(TIC_TAC_TOE, plies)) for plies in (1, 2, 5)] == [9, 72, 15_120 - 1_440]


@pytest.mark.parametrize(
    ("openings", "message"),
    [
        ([(4, 4)], r"in \[4, 4\], move 2, 4, is not legal"),
        ([(0, 3, 1, 4, 2)], "over after move 5"),
        ([], "at least one opening"),
    ],
)
def test_openings_that_cannot_be(openings, message):
    with pytest.raises(ValueError, match=message):
        play_games(RandomPlayer(), RandomPlayer(), "TicTacToe-v0", openings)


def test_what_cannot_be_played():
    with pytest.raises(ValueError, match="seats 0, 1 or both"):
        play_games(RandomPlayer(), RandomPlayer(), "TicTacToe-v0", seats=[2])
    with pytest.raises(ValueError, match="repeats=0"):
        play_games(RandomPlayer(), RandomPlayer(), "TicTacToe-v0", repeats=0)
    with pytest.raises(TypeError, match="not a game of two players"):
        play_games(RandomPlayer(), RandomPlayer(), "CartPole-v1")
    with pytest.raises(TypeError, match="one environment holds one game"):
        play_games(RandomPlayer(), RandomPlayer(), TwoPlayerAEC(Race()))


def test_the_player_who_sees_further_wins():
    score = play_games(AlphaBetaPlayer(2), RandomPlayer(), "ConnectFour-v0", repeats=5, seed=0)
    assert score.points >= 0.9
