"""Data: a world model's view of SB3's replay buffer, the imagined buffer, and the sampler that mixes both."""

from sb3_mbrl.buffers.imagined import ImaginedBuffer
from sb3_mbrl.buffers.mixed import MixedSampler
from sb3_mbrl.buffers.replay_view import ReplayData, RowCount
from sb3_mbrl.buffers.side_store import SideStore

__all__ = ["ImaginedBuffer", "MixedSampler", "ReplayData", "RowCount", "SideStore"]
