"""A world model that counts outcomes, for finite spaces."""

from sb3_mbrl.models.tabular.model import TabularModel

__all__ = ["TabularModel"]
