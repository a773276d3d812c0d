"""Model-based reinforcement learning for Stable-Baselines3."""

from sb3_mbrl.algorithms.dhmbpo import DHMBPO, SVG
from sb3_mbrl.algorithms.dreamer import Dreamer, DreamerV3
from sb3_mbrl.algorithms.dyna import Dyna
from sb3_mbrl.algorithms.dyna_q.dyna_q import DynaQ
from sb3_mbrl.algorithms.mbpo import MBPO
from sb3_mbrl.algorithms.model_based import model_based
from sb3_mbrl.algorithms.muzero import MuZero
from sb3_mbrl.algorithms.pets import PETS
from sb3_mbrl.contracts import Planner, WorldModel
from sb3_mbrl.envs import boards, cartpole, catch, control_suite, mazes, memory_cue
from sb3_mbrl.envs.latent_vec_env import LatentVecEnv
from sb3_mbrl.envs.model_vec_env import ModelVecEnv
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.version import __version__

__all__ = [
    "DHMBPO",
    "MBPO",
    "PETS",
    "SVG",
    "Dreamer",
    "DreamerV3",
    "Dyna",
    "DynaQ",
    "LatentVecEnv",
    "ModelVecEnv",
    "MuZero",
    "Planner",
    "WorldModel",
    "__version__",
    "hookimpl",
    "model_based",
]

mazes.register()
cartpole.register()
catch.register()
memory_cue.register()
boards.register()
control_suite.register()
