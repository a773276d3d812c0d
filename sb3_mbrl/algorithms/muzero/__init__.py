from sb3_mbrl.algorithms.muzero.muzero import MuZero

__all__ = ["MuZero"]
