"""Board games of two players, players for them, and evaluation by games, whole game trees and Elo ratings."""

from sb3_mbrl.envs.boards import aec, base
from sb3_mbrl.envs.boards.aec import PlayerOrderError, TwoPlayerAEC
from sb3_mbrl.envs.boards.base import BoardEnv, ConnectFour, TicTacToe, TwoPlayerEnv
from sb3_mbrl.envs.boards.callback import BoardEvalCallback
from sb3_mbrl.envs.boards.elo import elo_ratings, expected_points
from sb3_mbrl.envs.boards.evaluation import Score, all_openings, play_games
from sb3_mbrl.envs.boards.game_tree import Walk, mistakes, walk
from sb3_mbrl.envs.boards.line_game import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame, Position
from sb3_mbrl.envs.boards.opponent import Opponent
from sb3_mbrl.envs.boards.players import AgentPlayer, AlphaBetaPlayer, PerfectPlayer, Player, RandomPlayer

__all__ = [
    "CONNECT_FOUR",
    "EMPTY",
    "TIC_TAC_TOE",
    "AgentPlayer",
    "AlphaBetaPlayer",
    "BoardEnv",
    "BoardEvalCallback",
    "ConnectFour",
    "LineGame",
    "Opponent",
    "PerfectPlayer",
    "Player",
    "PlayerOrderError",
    "Position",
    "RandomPlayer",
    "Score",
    "TicTacToe",
    "TwoPlayerAEC",
    "TwoPlayerEnv",
    "Walk",
    "all_openings",
    "elo_ratings",
    "expected_points",
    "mistakes",
    "play_games",
    "register",
    "walk",
]


def register() -> None:
    """Register ``TicTacToe-v0``, ``ConnectFour-v0`` and ``PettingZoo-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    base.register()
    aec.register()
