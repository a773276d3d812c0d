"""Windows of real steps for models that filter sequences, with the latent states that the agent had on the way."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers.arrivals import Arrivals, arrivals
from sb3_mbrl.buffers.replay_data import ReplayData, SideStore
from sb3_mbrl.states import state_map


class Replayed(NamedTuple):
    """What :meth:`SequenceSampler.sample` returns: ``N`` windows of ``L`` rows."""

    rows: Arrivals
    start: dict[str, th.Tensor]
    """What is stored with the step before each window, ``(N, ...)``; nothing where there is none (the row begins anew then)"""
    steps: np.ndarray
    """``(N, L)``: where in the replay buffer a row's observation is"""
    envs: np.ndarray
    """``(N, L)``: of which environment"""
    own: np.ndarray
    """``(N, L)`` booleans: it is a step's own observation, and not the last one of an episode"""


class SequenceSampler:
    """
    Draws windows uniformly, except that every new step is seen soon: as soon as there are enough new ones for a window, they
    are part of the next batch (DreamerV3's online queue).

    A window begins with the state that the agent had one step earlier, which is kept beside the replay buffer
    (:meth:`keep`) and replaced whenever training has computed it anew (DreamerV3's replay context).

    :param buffer: any of SB3's replay buffers whose rows are single steps
    :param online: whether new steps come first
    """

    def __init__(self, buffer: ReplayBuffer, online: bool = True) -> None:
        self.data, self.side, self.online = ReplayData(buffer), SideStore(buffer), online
        self.fresh = 0
        """Steps per environment that were in no window yet"""

    def keep(self, position: int, states: dict[str, th.Tensor]) -> None:
        """
        Remember the states of a step that was just stored.

        :param position: where it was stored
        :param states: ``(n_envs, ...)`` each
        """
        for name, value in states.items():
            self.side.put(name, position, _compact(value))
        self.fresh += 1

    def update(self, replayed: Replayed, states: dict[str, th.Tensor]) -> None:
        """
        Replace the states of a batch.

        :param replayed: the batch
        :param states: ``(N, L, ...)`` each
        """
        steps, envs = replayed.steps[replayed.own], replayed.envs[replayed.own]
        for name, value in states.items():
            if name in self.side.arrays:
                self.side.arrays[name][steps, envs] = _compact(value)[replayed.own]

    def state(self) -> dict[str, Any]:
        """What is to be saved with the replay buffer."""
        return {"side": self.side.state(), "fresh": self.fresh}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave; nothing, where there was nothing."""
        self.side.restore(state.get("side", {}))
        self.fresh = state.get("fresh", 0)

    def enough(self, length: int) -> bool:
        """Whether there are windows of this length."""
        return len(self.data.positions()) > length

    def sample(self, n: int, length: int, *, generator: th.Generator | None = None) -> Replayed:
        """
        :param n: how many windows
        :param length: rows of each; one step more is needed, for what was before
        :raises ValueError: when there are fewer steps than that
        """
        positions, n_envs = self.data.positions(), self.data.buffer.n_envs
        choices = len(positions) - length
        if choices < 1:
            raise ValueError(
                f"Windows of {length} rows need {length + 1} steps per environment, and the replay buffer holds "
                f"{len(positions)}: collect more, or choose a smaller batch_length"
            )
        drawn = th.randint(choices * n_envs, (n,), generator=generator).numpy()
        offsets, envs = drawn // n_envs, drawn % n_envs
        filled = 0
        while self.online and self.fresh >= length and filled + n_envs <= n:
            newest = min(max(len(positions) - self.fresh - 1, 0), choices - 1)
            offsets[filled : filled + n_envs], envs[filled : filled + n_envs] = newest, np.arange(n_envs)
            self.fresh, filled = self.fresh - length, filled + n_envs
        slots = positions[offsets[:, None] + np.arange(length + 1)]
        wide = np.broadcast_to(envs[:, None], slots.shape)
        rows, step = arrivals(self.data.windows(slots, wide))
        rows = Arrivals(*(state_map(lambda leaf: leaf[:, 1:], part) for part in rows))
        start, known = self._states(slots[:, 0], envs)
        rows.is_first[:, 0] |= th.as_tensor(~known)
        steps = np.take_along_axis(slots, step[:, 1:].numpy(), 1)
        return Replayed(rows, start, steps, wide[:, 1:], ~rows.is_last.numpy())

    def _states(self, steps: np.ndarray, envs: np.ndarray) -> tuple[dict[str, th.Tensor], np.ndarray]:
        """What is stored with some steps, and with which of them."""
        known = np.zeros(len(steps), dtype=bool)
        found = {}
        for name, values in self.side.arrays.items():
            known = self.side.written(name)[steps]
            stored = values[steps, envs]
            found[name] = th.as_tensor(stored.astype(np.float32) if stored.dtype == np.float16 else stored)
        return found, known


def _compact(value: th.Tensor) -> np.ndarray:
    """Numbers in half precision, indices as they are."""
    array = value.detach().cpu().numpy()
    return array.astype(np.float16) if array.dtype.kind == "f" else array
