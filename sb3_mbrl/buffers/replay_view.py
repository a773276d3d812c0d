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
        """Return where the rows of :meth:`transitions` are stored."""
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
        return self.transitions_at(rows, envs)

    def transitions_at(self, rows: np.ndarray, envs: np.ndarray) -> Transitions:
        """
        Gather given rows.

        :param rows: ``(N,)``
        :param envs: ``(N,)``
        :raises ValueError: when real data is not finite
        """
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
        first = _first_of_run(self._begins(positions))
        ends = age[rows]
        offsets = ends[:, None] + np.arange(1 - length, 1)
        begin = first[ends, envs][:, None]
        window = self.windows(positions[np.maximum(offsets, begin)], np.broadcast_to(envs[:, None], offsets.shape), extra)
        return window._replace(is_first=window.is_first | th.as_tensor(offsets <= begin))

    def _begins(self, positions: np.ndarray) -> np.ndarray:
        """
        Tell before which steps a window may not reach back: the first ones of episodes.

        :param positions: ``(T,)``, oldest first
        :return: ``(T, n_envs)`` booleans
        """
        begins = np.ones((len(positions), self.buffer.n_envs), dtype=bool)
        begins[1:] = self.buffer.dones[positions[:-1]] > 0
        return begins

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


class SelectedRows(ReplayData):
    """
    A part of the rows of a replay buffer, as data of its own: windows lie wholly in it. Made for one fit, since it does not
    follow a buffer that grows.

    :param data: the whole
    :param selected: ``(buffer_size, n_envs)`` booleans: the rows that are shown
    :param held_out: the rows that :meth:`held_out` returns
    """

    def __init__(self, data: ReplayData, selected: np.ndarray, held_out: ReplayData | None = None) -> None:
        super().__init__(data.buffer, data.side, data.stored)
        self.selected = selected
        self._held_out = held_out
        self._starts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def held_out(self) -> ReplayData | None:
        """Return the rows that were held out of this part."""
        return self._held_out

    def _usable(self) -> tuple[np.ndarray, np.ndarray]:
        rows, envs = super()._usable()
        chosen = self.selected[rows, envs]
        return rows[chosen], envs[chosen]

    def __len__(self) -> int:
        return len(self._usable()[0])

    def episode_starts(self) -> th.Tensor:
        starts = super().episode_starts()
        return starts[th.as_tensor(self.selected[self.places(starts)])]

    def draw(self, n: int, generator: th.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        positions = self.positions()
        offsets, envs = self.selected[positions].nonzero()
        self._refuse_empty(len(offsets))
        index = th.randint(len(offsets), (n,), generator=generator).numpy()
        return positions[offsets[index]], envs[index]

    def sequences(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        if length not in self._starts:
            offsets, envs = _windows_within(self.selected[self.positions()], length).nonzero()
            self._starts[length] = offsets, envs
        offsets, envs = self._starts[length]
        if not len(offsets):
            raise ValueError(f"Windows of {length} steps were asked for, but no {length} consecutive steps are selected")
        index = th.randint(len(offsets), (n,), generator=generator).numpy()
        rows = self.positions()[offsets[index][:, None] + np.arange(length)]
        return self.windows(rows, np.broadcast_to(envs[index][:, None], rows.shape), extra)

    def newest(self, n: int, length: int, *, within: int, generator: th.Generator | None = None) -> Sequences | None:
        raise NotImplementedError("The newest steps are asked of the whole buffer")

    def _begins(self, positions: np.ndarray) -> np.ndarray:
        begins = super()._begins(positions)
        selected = self.selected[positions]
        # A window that ends after a gap does not reach back across it.
        begins[1:] |= selected[1:] & ~selected[:-1]
        return begins

    def full_contexts(self, length: int) -> th.Tensor:
        """
        Tell which rows have a context that is not cut short by what was left out.

        :param length: the number of steps of a context
        :return: those of :meth:`row_ids`, oldest first, whose last ``length`` steps, or all since their episode began, are
            selected
        """
        positions = self.positions()
        age = np.arange(len(positions))[:, None]
        wanted = np.maximum(_first_of_run(super()._begins(positions)), age - (length - 1))
        full = self.selected[positions] & (_first_of_run(self._begins(positions)) <= wanted)
        rows, envs = self._usable()
        chosen = np.zeros_like(self.selected)
        chosen[positions] = full
        kept = chosen[rows, envs]
        return th.as_tensor(rows[kept] * self.buffer.n_envs + envs[kept])


def _first_of_run(begins: np.ndarray) -> np.ndarray:
    """``(T, n_envs)``: for every step the number of the last one, itself included, at which ``begins`` is true (or 0)."""
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins))[:, None], 0), axis=0)


def _windows_within(selected: np.ndarray, length: int) -> np.ndarray:
    """
    Tell where windows begin that are selected from end to end.

    :param selected: ``(T, n_envs)`` booleans
    :return: ``(max(0, T - length + 1), n_envs)`` booleans
    """
    # The plain version: selected[t : t + length].all() for every t. By running sums the cost does not grow with the length.
    if len(selected) < length:
        return np.zeros((0, selected.shape[1]), dtype=bool)
    left_out = np.concatenate([np.zeros((1, selected.shape[1]), dtype=np.int64), (~selected).cumsum(0)])
    return left_out[length:] == left_out[: len(left_out) - length]


def _gather(arrays: Arrays, pick: Callable[[np.ndarray], np.ndarray]) -> Obs:
    """Rows as tensors: floats as float32, everything else as it is."""

    def tensor(array: np.ndarray) -> th.Tensor:
        rows = pick(array)
        return th.as_tensor(rows.astype(np.float32, copy=False) if np.issubdtype(rows.dtype, np.floating) else rows)

    return {key: tensor(array) for key, array in arrays.items()} if isinstance(arrays, dict) else tensor(arrays)
