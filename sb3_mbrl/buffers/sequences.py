"""The replay of sequences of real steps for latent models, together with the agent's latent states."""

import uuid
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

try:
    import psutil
except ImportError:
    psutil = None

from sb3_mbrl.buffers.replay_view import ReplayData
from sb3_mbrl.buffers.side_store import SideStore
from sb3_mbrl.contracts import LatentModel, Timesteps
from sb3_mbrl.timesteps import to_timesteps
from sb3_mbrl.trees import State, tree_map

_PREFIX = "latent."
"""The prefix of the names of latent states in the side store"""


class Replayed(NamedTuple):
    """A batch of ``N`` windows of ``L`` rows."""

    rows: Timesteps
    """``(N, L, ...)``"""
    start: dict[str, th.Tensor]
    """The packed state before each window, ``(N, ...)``; empty where no states are stored (then ``is_first`` is true)"""
    steps: np.ndarray
    """``(N, L)``: the position in the replay buffer of the step that each row's observation comes from"""
    envs: np.ndarray
    """``(N, L)``: the environment of each row"""
    own: np.ndarray
    """
    ``(N, L)`` booleans: whether a row is a step's own observation, so that its latent state is stored with that step. The last
    observation of an episode is the ``next_obs`` of its step, and has no place of its own in the buffer.
    """


class SequenceReplay:
    """
    A sampler of windows from SB3's replay buffer, with new steps first and with stored latent states.

    Windows are drawn uniformly, but as soon as there are enough new steps for a window, that window is part of the next batch
    (DreamerV3's online queue). If an episode ends in such a window, its last observation takes a row, and the last step of the
    window has to be drawn later by chance.

    A window begins with the latent state that the agent had one step earlier. States are stored in the side store when a step
    is collected, and replaced whenever training has computed new ones (DreamerV3's replay context).

    :param buffer: an SB3 replay buffer whose rows are single steps
    :param side: the side store of the buffer
    :param model: the model, which packs and unpacks states
    :param length: the number of rows of a window
    :param online: whether new steps come first
    :param context: whether windows begin with the stored state; ``False``: with an unknown one
    :raises ValueError: for a buffer that cannot tell where episodes end, or that is shorter than a window
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        side: SideStore,
        model: LatentModel,
        length: int,
        *,
        online: bool = True,
        context: bool = True,
    ) -> None:
        if buffer.optimize_memory_usage:
            raise ValueError(
                "a replay buffer with optimize_memory_usage=True keeps no last observations of episodes: choose False"
            )
        if not getattr(buffer, "handle_timeout_termination", True):
            raise ValueError(
                "a replay buffer with handle_timeout_termination=False cannot tell time limits from terminations: a model "
                "would learn that episodes end where they are merely cut off"
            )
        if buffer.buffer_size <= length:
            raise ValueError(
                f"batch_length={length}: the replay buffer keeps {buffer.buffer_size} steps per environment "
                f"({buffer.n_envs} of them share buffer_size), and needs one more than the length. Choose a larger "
                "buffer_size or a smaller batch_length."
            )
        self.data, self.side, self.model = ReplayData(buffer), side, model
        self.length, self.online, self.context = length, online, context
        self.model_id = uuid.uuid4().hex
        """The identity of this world model, since another model's latent states mean something else"""
        self._known = np.zeros((buffer.buffer_size, buffer.n_envs), dtype=bool)
        """``(buffer_size, n_envs)`` booleans: whether a step has a stored state"""
        self._kept = 0
        """The number of steps per environment that were stored so far"""
        self._queued_until = 0
        """The number of those steps that were put into the queue"""
        self._queue: deque[tuple[int, int]] = deque()
        """The first step (counted from the first of all) and the environment of new windows that were in no batch yet"""

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer"""
        return self.data.buffer

    # ---- storing

    def packed(self, state: State) -> dict[str, np.ndarray]:
        """
        Pack states under their names in the side store, to be stored with the next row.

        :param state: ``(n_envs, ...)``
        """
        packed = {f"{_PREFIX}{name}": compact(value) for name, value in self.model.pack(state).items()}
        if self._kept == 0:
            self._warn_of_size(sum(value.nbytes for value in packed.values()))
        return packed

    def _warn_of_size(self, step: int) -> None:
        """
        Warn if the latent states of a full buffer would not fit into memory.

        Memory is taken only when it is written to, so training would fail after hours. The check needs psutil; SB3 warns about
        its own arrays in the same way.

        :param step: the number of bytes of one step of all environments
        """
        if psutil is None:
            return
        total, available = step * self.buffer.buffer_size, psutil.virtual_memory().available
        if total > available:
            rows = self.buffer.buffer_size * self.buffer.n_envs
            warnings.warn(
                f"The latent states of {rows} steps take {total / 1e9:.1f} GB when the replay "
                f"buffer is full, and {available / 1e9:.1f} GB of memory are free: choose a smaller buffer_size, or size.",
                stacklevel=2,
            )

    def added(self, position: int) -> None:
        """Note that a step with its states was stored at a position of the buffer."""
        self._known[position] = True
        self._kept += 1

    def update(self, replayed: Replayed, states: Mapping[str, th.Tensor]) -> None:
        """
        Replace the states of a batch.

        :param replayed: the batch
        :param states: packed, ``(N, L, ...)`` each
        """
        steps, envs = replayed.steps[replayed.own], replayed.envs[replayed.own]
        for name, value in states.items():
            self.side.put_rows(f"{_PREFIX}{name}", steps, envs, compact(value)[replayed.own])
        self._known[steps, envs] = True

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the world model, for the agent's checkpoint."""
        return {"model_id": self.model_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.model_id = state["model_id"]

    def buffer_state(self) -> dict[str, Any]:
        """Return the values to save with the replay buffer, apart from the side store's."""
        queue = [self._kept, self._queued_until, [list(window) for window in self._queue]]
        return {"of": self._layout(), "known": self._known[: self.buffer.size()], "queue": queue}

    def restore_buffer_state(self, state: Mapping[str, Any]) -> bool:
        """
        Restore the result of :meth:`buffer_state`.

        :return: whether the stored states are this world model's; if not, sequences begin anew
        """
        if state.get("of") != self._layout():
            return False
        self._known[: len(state["known"])] = state["known"]
        self._kept, self._queued_until, queue = state["queue"]
        self._queue = deque((step, env) for step, env in queue)
        return True

    def _layout(self) -> list[Any]:
        """Return the identity and the layout of stored states: only equal ones can be restored."""
        return [self.model_id, *self.model.state_layout]

    # ---- sampling

    def enough(self) -> bool:
        """Tell whether there are enough steps for a window."""
        return len(self.data.positions()) > self.length

    def on_device(self, batch: Replayed, device: th.device) -> tuple[Timesteps, State | None]:
        """
        Move a batch to the model's device, and return its rows and the unpacked states before them.

        :param batch: the batch
        :param device: the model's device
        """
        rows = tree_map(lambda leaf: leaf.to(device, non_blocking=True), batch.rows)
        if not self.context:
            rows.is_first[:, 0] = True
        if not self.context or not batch.start:
            return rows, None
        return rows, self.model.unpack(tree_map(lambda leaf: leaf.to(device, non_blocking=True), batch.start))

    def sample(self, n: int, *, generator: th.Generator | None = None) -> Replayed:
        """
        Draw a batch.

        :param n: the number of windows
        :param generator: the source of randomness
        :raises ValueError: when there are fewer steps per environment than a window has, plus one before it
        """
        positions, n_envs, length = self.data.positions(), self.buffer.n_envs, self.length
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
        # `step` numbers the steps of a window; `slots` has their positions. The first row only provided the start state.
        steps = np.take_along_axis(slots, step[:, 1:].numpy(), 1)
        return Replayed(rows, start, steps, wide[:, 1:], ~rows.is_last.numpy())

    def _next_new(self, n: int, length: int, held: int) -> list[tuple[int, int]]:
        """Take at most ``n`` windows out of the queue: their first of the ``held`` stored steps, and their environments."""
        while self._kept - self._queued_until >= length:
            # The row before a window provides its start state; the very first step has no row before it.
            start = max(self._queued_until - 1, 0)
            self._queue.extend((start, env) for env in range(self.buffer.n_envs))
            self._queued_until += length
        oldest = self._kept - held
        windows: list[tuple[int, int]] = []
        while self._queue and len(windows) < n:
            start, env = self._queue[0]
            if start - oldest + length >= held:
                break  # its last step has not been stored yet
            self._queue.popleft()
            if start >= oldest:  # else its first step has been overwritten
                windows.append((start - oldest, env))
        return windows

    def _states(self, steps: np.ndarray, envs: np.ndarray) -> tuple[dict[str, th.Tensor], np.ndarray]:
        """Return the packed states that are stored with some steps, and which of these steps have any."""
        states = {}
        for name, values in self.side.arrays.items():
            if name.startswith(_PREFIX):
                stored = values[steps, envs]
                stored = stored.astype(np.float32) if stored.dtype == np.float16 else stored
                states[name.removeprefix(_PREFIX)] = th.as_tensor(stored)
        return states, self._known[steps, envs]


def compact(value: th.Tensor) -> np.ndarray:
    """Convert a tensor to numpy, floats in half precision."""
    array = value.detach().cpu().numpy()
    return array.astype(np.float16) if array.dtype.kind == "f" else array
