"""Checkpoints of a run: sets of files of one moment, which are written whole or not at all, and noticed when damaged."""

from sb3_mbrl.checkpoints.checkpoint_set import CheckpointSet
from sb3_mbrl.checkpoints.folder import CheckpointFolder, FolderInUseError, Found

__all__ = ["CheckpointFolder", "CheckpointSet", "FolderInUseError", "Found"]
