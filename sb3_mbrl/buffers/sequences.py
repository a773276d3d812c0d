"""Windows of real steps for models that filter sequences, with the latent states that the agent had on the way."""

import warnings
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

try:
    import psutil
except ImportError:
    psutil = None

from sb3_mbrl.buffers.replay_view import ReplayData, SideStore
from sb3_mbrl.buffers.timesteps import to_timesteps
from sb3_mbrl.contracts import Timesteps
from sb3_mbrl.trees import tree_map


class Replayed(NamedTuple):
    """What :meth:`SequenceSampler.sample` returns: ``N`` windows of ``L`` rows."""

    rows: Timesteps
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
    Draws windows uniformly, except that new steps are seen soon: as soon as there are enough new ones for a window, they are
    part of the next batch (DreamerV3's online queue). Where an episode ends in such a window its last observation takes a row,
    and the window's last step is left to chance.

    A window begins with the state that the agent had one step earlier, which is kept beside the replay buffer
    (:meth:`keep`) and replaced whenever training has computed it anew (DreamerV3's replay context).

    :param buffer: any of SB3's replay buffers whose rows are single steps
    :param online: whether new steps come first
    """

    def __init__(self, buffer: ReplayBuffer, online: bool = True) -> None:
        if buffer.optimize_memory_usage:
            raise ValueError("a replay buffer with optimize_memory_usage=True keeps no last observations of episodes")
        if not getattr(buffer, "handle_timeout_termination", True):
            raise ValueError(
                "a replay buffer with handle_timeout_termination=False cannot tell time limits from terminations: a model "
                "would learn that episodes end where they are merely cut off"
            )
        self.data, self.side, self.online = ReplayData(buffer), SideStore(buffer), online
        self._known = np.zeros((buffer.buffer_size, buffer.n_envs), dtype=bool)
        """With which steps states are stored"""
        self._kept = 0
        """Steps per environment so far"""
        self._queued_until = 0
        """Those of them that were put into the queue"""
        self._queue: deque[tuple[int, int]] = deque()
        """Step (of all so far) and environment of new windows that were in no batch yet"""

    def warn_of_size(self, states: dict[str, th.Tensor]) -> None:
        """
        Memory is taken only when it is written to: too little of it would end training after hours. (Where psutil is
        installed, as SB3 does it for its own part of the buffer.)

        :param states: of one step and one environment
        """
        if psutil is None:
            return
        buffer = self.data.buffer
        total = sum(_compact(value).nbytes for value in states.values()) * buffer.buffer_size * buffer.n_envs
        available = psutil.virtual_memory().available
        if total > available:
            warnings.warn(
                f"The latent states of {buffer.buffer_size * buffer.n_envs} steps take {total / 1e9:.1f} GB when the replay "
                f"buffer is full, and {available / 1e9:.1f} GB of memory are free: choose a smaller buffer_size, or size.",
                stacklevel=2,
            )

    def keep(self, position: int, states: dict[str, th.Tensor]) -> None:
        """
        Remember the states of a step that was just stored.

        :param position: where it was stored
        :param states: ``(n_envs, ...)`` each
        """
        for name, value in states.items():
            self.side.put(name, position, _compact(value))
        self._known[position] = True
        self._kept += 1

    def update(self, replayed: Replayed, states: dict[str, th.Tensor]) -> None:
        """
        Replace the states of a batch.

        :param replayed: the batch
        :param states: ``(N, L, ...)`` each
        """
        steps, envs = replayed.steps[replayed.own], replayed.envs[replayed.own]
        for name, value in states.items():
            self.side.put_rows(name, steps, envs, _compact(value)[replayed.own])
        self._known[steps, envs] = True

    def state(self) -> dict[str, Any]:
        """What is to be saved with the replay buffer."""
        queue = (self._kept, self._queued_until, list(self._queue))
        return {"side": self.side.state(), "known": self._known[: self.data.buffer.size()], "queue": queue}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave; nothing, where there was nothing."""
        self.side.restore(state.get("side", {}))
        known = state.get("known", np.zeros((0, self._known.shape[1]), dtype=bool))
        self._known[: len(known)] = known
        self._kept, self._queued_until, queue = state.get("queue", (0, 0, []))
        self._queue = deque(queue)

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
        for i, (offset, env) in enumerate(self._next_new(n, length, len(positions)) if self.online else ()):
            offsets[i], envs[i] = offset, env
        slots = positions[offsets[:, None] + np.arange(length + 1)]
        wide = np.broadcast_to(envs[:, None], slots.shape)
        rows, step = to_timesteps(self.data.windows(slots, wide))
        rows = Timesteps(*(tree_map(lambda leaf: leaf[:, 1:], part) for part in rows))
        start, known = self._states(slots[:, 0], envs)
        rows.is_first[:, 0] |= th.as_tensor(~known)
        steps = np.take_along_axis(slots, step[:, 1:].numpy(), 1)
        return Replayed(rows, start, steps, wide[:, 1:], ~rows.is_last.numpy())

    def _next_new(self, n: int, length: int, held: int) -> list[tuple[int, int]]:
        """At most ``n`` windows of new steps: where they begin among the ``held`` ones, and their environments."""
        while self._kept - self._queued_until >= length:
            # The step before is what the window goes on from; the very first has none.
            start = max(self._queued_until - 1, 0)
            self._queue.extend((start, env) for env in range(self.data.buffer.n_envs))
            self._queued_until += length
        oldest = self._kept - held
        found: list[tuple[int, int]] = []
        while self._queue and len(found) < n:
            start, env = self._queue[0]
            if start - oldest + length >= held:
                break  # not even the last step of it is there yet
            self._queue.popleft()
            if start >= oldest:  # else it was overwritten
                found.append((start - oldest, env))
        return found

    def _states(self, steps: np.ndarray, envs: np.ndarray) -> tuple[dict[str, th.Tensor], np.ndarray]:
        """What is stored with some steps, and with which of them."""
        found = {}
        for name, values in self.side.arrays.items():
            stored = values[steps, envs]
            found[name] = th.as_tensor(stored.astype(np.float32) if stored.dtype == np.float16 else stored)
        return found, self._known[steps, envs]


def _compact(value: th.Tensor) -> np.ndarray:
    """Numbers in half precision, indices as they are."""
    array = value.detach().cpu().numpy()
    return array.astype(np.float16) if array.dtype.kind == "f" else array
