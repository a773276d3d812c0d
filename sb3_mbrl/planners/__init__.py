"""Planners: choose actions by looking ahead in a world model. One file each."""

from sb3_mbrl.planners.cem import CEM
from sb3_mbrl.planners.gradient import GradientPlanner
from sb3_mbrl.planners.icem import ICEM
from sb3_mbrl.planners.ilqr import ILQR
from sb3_mbrl.planners.mcts import MCTS
from sb3_mbrl.planners.mppi import MPPI
from sb3_mbrl.planners.random_shooting import RandomShooting

__all__ = ["CEM", "ICEM", "ILQR", "MCTS", "MPPI", "GradientPlanner", "RandomShooting"]
