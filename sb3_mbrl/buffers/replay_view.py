"""A world model's view on SB3's own replay buffer, which is never replaced or wrapped.

Taken care of here, so that no model has to: time limits are not terminations; with ``optimize_memory_usage`` the successor
of an episode's last row is the next episode's first observation (SB3 issue 934), so such rows are no data for dynamics;
n-step buffers store single steps; the write head separates the newest row from the oldest; rows of several environments lie
side by side.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers.side_store import SideStore
from sb3_mbrl.contracts import Obs, Sequences, Transitions

Arrays = np.ndarray | dict[str, np.ndarray]


class ReplayData:
    """
    Implements :class:`~sb3_mbrl.contracts.Data` on a replay buffer, without copying more than is asked for.

    :param buffer: any of SB3's replay buffers (n-step, Dict and HER too)
    :param side: what is stored beside its rows
    :param stored: show only rows with which the side store has this
    """

    def __init__(self, buffer: ReplayBuffer, side: SideStore | None = None, stored: str | None = None) -> None:
        self.buffer = buffer
        self.side = side
        self.stored = stored

    # ---- which rows

    def positions(self) -> np.ndarray:
        """``(T,)``: rows whose observations are intact, oldest first."""
        buffer = self.buffer
        positions = np.arange(buffer.pos)
        if buffer.full:
            positions = (buffer.pos + np.arange(buffer.buffer_size)) % buffer.buffer_size
            # With one array for both observations, the newest next observation has overwritten the oldest row.
            positions = positions[1:] if buffer.optimize_memory_usage else positions
        if self.stored is not None and self.side is not None:
            positions = positions[self.side.written(self.stored)[positions]]
        return positions

    def _usable(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and environments of all transitions whose next observation is known, oldest first."""
        positions = self.positions()
        rows = np.repeat(positions, self.buffer.n_envs)
        envs = np.tile(np.arange(self.buffer.n_envs), len(positions))
        if self.buffer.optimize_memory_usage:
            known = self.buffer.dones[rows, envs] == 0
            rows, envs = rows[known], envs[known]
        return rows, envs

    def __len__(self) -> int:
        if self.buffer.optimize_memory_usage or self.stored is not None:
            return len(self._usable()[0])
        return self.buffer.size() * self.buffer.n_envs

    def row_ids(self) -> th.Tensor:
        """Where the rows of :meth:`transitions` are stored."""
        rows, envs = self._usable()
        return th.as_tensor(rows * self.buffer.n_envs + envs)

    def episode_starts(self) -> th.Tensor:
        """Those of :meth:`row_ids` that begin an episode, oldest first."""
        positions = self.positions()
        first = np.ones((len(positions), self.buffer.n_envs), dtype=bool)
        first[1:] = self.buffer.dones[positions[:-1]] > 0
        if self.buffer.full:
            # Its beginning may have been overwritten.
            first[:1] = False
        if self.buffer.optimize_memory_usage:
            first &= self.buffer.dones[positions] == 0
        offsets, envs = first.nonzero()
        return th.as_tensor(positions[offsets] * self.buffer.n_envs + envs)

    def places(self, row_ids: th.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows and environments of ids."""
        ids = row_ids.cpu().numpy()
        return ids // self.buffer.n_envs, ids % self.buffer.n_envs

    def draw(self, n: int, generator: th.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows and environments of ``n`` real observations to start from, uniformly with replacement."""
        positions = self.positions()
        self._refuse_empty(len(positions))
        index = th.randint(len(positions) * self.buffer.n_envs, (n,), generator=generator).numpy()
        return positions[index // self.buffer.n_envs], index % self.buffer.n_envs

    # ---- Data

    def held_out(self) -> "ReplayData | None":
        """Return ``None``: nothing is held out of the whole buffer."""
        return None

    def transitions(self, n: int | None = None, *, generator: th.Generator | None = None) -> Transitions:
        """
        :param n: so many rows uniformly with replacement; ``None``: all, oldest first
        :raises ValueError: when there is none, or when real data is not finite
        """
        rows, envs = self._usable()
        self._refuse_empty(len(rows))
        if n is not None:
            index = th.randint(len(rows), (n,), generator=generator).numpy()
            rows, envs = rows[index], envs[index]
        data = Transitions(
            self._obs(rows, envs),
            th.as_tensor(self.buffer.actions[rows, envs]),
            self._next_obs(rows, envs),
            th.as_tensor(self.buffer.rewards[rows, envs]),
            th.as_tensor(self._terminated(rows, envs)),
        )
        self._refuse_nonfinite(data, rows, envs)
        return data

    def sequences(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """
        ``n`` windows of ``length`` consecutive steps of one environment each, uniformly.

        With ``optimize_memory_usage`` the next observation of a step that ends its episode is not known; there the step's
        own stands in.

        :raises ValueError: when the buffer holds fewer steps than a window
        """
        positions = self.positions()
        if len(positions) < length:
            raise ValueError(
                f"Windows of {length} steps were asked for, but the replay buffer holds {len(positions)} per environment"
            )
        starts = th.randint((len(positions) - length + 1) * self.buffer.n_envs, (n,), generator=generator).numpy()
        offsets = (starts // self.buffer.n_envs)[:, None] + np.arange(length)
        rows, envs = positions[offsets], np.broadcast_to((starts % self.buffer.n_envs)[:, None], (n, length))
        return self.windows(rows, envs, extra)

    def newest(self, n: int, length: int, *, within: int, generator: th.Generator | None = None) -> Sequences | None:
        """
        Windows that lie wholly in the newest ``within`` steps and within one episode; ``None`` where there is no such window.

        :param n: at most so many, without replacement
        :param length: steps per window
        :param within: steps per environment
        """
        positions = self.positions()[-within:]
        if len(positions) < length:
            return None
        ends = self.buffer.dones[positions]
        # A window may end with the end of an episode, but not run across one.
        crossed = np.concatenate([np.zeros((1, self.buffer.n_envs)), ends.cumsum(0)])
        clean = crossed[length - 1 : -1] - crossed[: len(positions) - length + 1] == 0
        if self.buffer.optimize_memory_usage:
            clean &= ends[length - 1 :] == 0
        offsets, envs = clean.nonzero()
        if not len(offsets):
            return None
        choice = th.randperm(len(offsets), generator=generator)[:n].numpy()
        rows = positions[offsets[choice][:, None] + np.arange(length)]
        return self.windows(rows, np.broadcast_to(envs[choice][:, None], rows.shape))

    def contexts(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """Draw ``n`` windows of ``length`` steps, each ending in a uniformly drawn real observation."""
        return self.contexts_at(*self.draw(n, generator), length, extra)

    def contexts_at(self, rows: np.ndarray, envs: np.ndarray, length: int, extra: Iterable[str] = ()) -> Sequences:
        """
        Windows that end in given rows, padded on the left by repeating the episode's first step.

        :param rows: ``(N,)``
        :param envs: ``(N,)``
        """
        if length == 1:
            return self.windows(rows[:, None], envs[:, None], extra)
        positions = self.positions()
        age = np.empty(self.buffer.buffer_size, dtype=np.int64)
        age[positions] = np.arange(len(positions))
        first = np.zeros((len(positions), self.buffer.n_envs), dtype=np.int64)
        first[1:] = np.where(self.buffer.dones[positions[:-1]] > 0, np.arange(1, len(positions))[:, None], 0)
        first = np.maximum.accumulate(first, axis=0)
        ends = age[rows]
        offsets = ends[:, None] + np.arange(1 - length, 1)
        begin = first[ends, envs][:, None]
        window = self.windows(positions[np.maximum(offsets, begin)], np.broadcast_to(envs[:, None], offsets.shape), extra)
        return window._replace(is_first=window.is_first | th.as_tensor(offsets <= begin))

    # ---- gathering

    def windows(self, rows: np.ndarray, envs: np.ndarray, extra: Iterable[str] = ()) -> Sequences:
        """
        Gather windows of given rows, which follow each other along the second axis.

        :param rows: ``(N, L)``
        :param envs: ``(N, L)``
        :param extra: the names of values of the side store that are wanted too
        """
        ends = self.buffer.dones[rows, envs] > 0
        is_first = np.ones_like(ends)
        is_first[:, 1:] = ends[:, :-1]
        next_obs = self._next_obs(rows, envs)
        if self.buffer.optimize_memory_usage:
            next_obs[ends] = self._obs(rows, envs)[ends]
        return Sequences(
            self._obs(rows, envs),
            th.as_tensor(self.buffer.actions[rows, envs]),
            next_obs,
            th.as_tensor(self.buffer.rewards[rows, envs]),
            th.as_tensor(self._terminated(rows, envs)),
            th.as_tensor(is_first),
            th.as_tensor(ends),
            {name: self._stored_beside(name, rows, envs) for name in extra},
            th.as_tensor(rows * self.buffer.n_envs + envs),
        )

    def _stored_beside(self, name: str, rows: np.ndarray, envs: np.ndarray) -> th.Tensor:
        if self.side is None:
            raise ValueError(f"The replay buffer has no side store, so nothing is stored as {name!r} with its rows")
        return self.side.get(name, rows, envs)

    def _terminated(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        return self.buffer.dones[rows, envs] * (1 - self.buffer.timeouts[rows, envs])

    def _obs(self, rows: np.ndarray, envs: np.ndarray) -> Obs:
        return _gather(self.buffer.observations, lambda array: array[rows, envs])

    def _next_obs(self, rows: np.ndarray, envs: np.ndarray) -> Obs:
        if self.buffer.optimize_memory_usage:
            return self._obs((rows + 1) % self.buffer.buffer_size, envs)
        return _gather(self.buffer.next_observations, lambda array: array[rows, envs])

    # ---- errors

    @staticmethod
    def _refuse_empty(n: int) -> None:
        if n == 0:
            raise ValueError(
                "The replay buffer holds no usable transition: collect some with learn(), add some with replay_buffer.add(), "
                "or load some with load_replay_buffer()"
            )

    def _refuse_nonfinite(self, data: Transitions, rows: np.ndarray, envs: np.ndarray) -> None:
        for name, value in data._asdict().items():
            for key, leaf in value.items() if isinstance(value, dict) else [(None, value)]:
                if not leaf.is_floating_point() or bool(leaf.isfinite().all()):
                    continue
                i = int((~leaf.flatten(1).isfinite().all(1) if leaf.dim() > 1 else ~leaf.isfinite()).nonzero()[0])
                where = name if key is None else f"{name}[{key!r}]"
                raise ValueError(
                    f"The replay buffer holds NaN or infinity in {where} at row {rows[i]}, environment {envs[i]}. "
                    "Real data must be finite: mend the environment or remove the rows."
                )


def _gather(arrays: Arrays, pick: Callable[[np.ndarray], np.ndarray]) -> Obs:
    """Rows as tensors: floats as float32, everything else as it is."""

    def tensor(array: np.ndarray) -> th.Tensor:
        rows = pick(array)
        return th.as_tensor(rows.astype(np.float32, copy=False) if np.issubdtype(rows.dtype, np.floating) else rows)

    return {key: tensor(array) for key, array in arrays.items()} if isinstance(arrays, dict) else tensor(arrays)
