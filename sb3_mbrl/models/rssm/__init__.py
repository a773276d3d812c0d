"""The recurrent state-space models of PlaNet and Dreamer."""

from sb3_mbrl.models.rssm.model import RSSM
from sb3_mbrl.models.rssm.settings import SIZES, Settings

__all__ = ["RSSM", "SIZES", "Settings"]
