"""Board games of two players, players for them, and evaluation by games, whole game trees and Elo ratings."""

from sb3_mbrl.envs.boards.base import BoardEnv, ConnectFour, TicTacToe, TwoPlayerEnv, register
from sb3_mbrl.envs.boards.line_game import CONNECT_FOUR, EMPTY, TIC_TAC_TOE, LineGame, Position

__all__ = [
    "CONNECT_FOUR",
    "EMPTY",
    "TIC_TAC_TOE",
    "BoardEnv",
    "ConnectFour",
    "LineGame",
    "Position",
    "TicTacToe",
    "TwoPlayerEnv",
    "register",
]
