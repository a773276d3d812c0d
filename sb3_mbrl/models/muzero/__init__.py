from sb3_mbrl.models.muzero.model import MuZeroModel

__all__ = ["MuZeroModel"]
