"""The recurrent state-space models of PlaNet and Dreamer."""

from sb3_mbrl.models.rssm.model import RSSM, SIZES

__all__ = ["RSSM", "SIZES"]
