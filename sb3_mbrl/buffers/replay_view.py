"""A world model's view of SB3's own replay buffer, which is never replaced or wrapped.

The view takes care of these facts, so that no model has to: time limits are not terminations; with ``optimize_memory_usage``
the row after an episode's last one holds the next episode's first observation (SB3 issue 934), so an episode's last row has no
next observation and is left out; n-step buffers store single steps; in a full buffer the newest row lies just before the
oldest; rows of several environments lie side by side.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers.side_store import SideStore
from sb3_mbrl.contracts import Obs, Sequences, Transitions
from sb3_mbrl.spaces import as_tensor

Arrays = np.ndarray | dict[str, np.ndarray]


class ReplayData:
    """
    A view of a replay buffer as :class:`~sb3_mbrl.contracts.Data`, which copies only the rows that are asked for.

    :param buffer: an SB3 replay buffer (n-step, Dict and HER buffers too)
    :param side: the side store of the buffer
    :param stored: the name of values in the side store; only rows that have them are shown
    """

    def __init__(self, buffer: ReplayBuffer, side: SideStore | None = None, stored: str | None = None) -> None:
        self.buffer = buffer
        self.side = side
        self.stored = stored

    # ---- which rows

    def positions(self) -> np.ndarray:
        """Return the positions of steps whose observations are intact, oldest first, ``(T,)``."""
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
        """Return positions and environments of all transitions whose next observation is known, oldest first."""
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
        """Return those of :meth:`row_ids` that begin an episode, oldest first."""
        positions = self.positions()
        first = np.ones((len(positions), self.buffer.n_envs), dtype=bool)
        first[1:] = self.buffer.dones[positions[:-1]] > 0
        if self.buffer.full:
            # The oldest step may belong to an episode whose beginning has been overwritten.
            first[:1] = False
        if self.buffer.optimize_memory_usage:
            first &= self.buffer.dones[positions] == 0
        offsets, envs = first.nonzero()
        return th.as_tensor(positions[offsets] * self.buffer.n_envs + envs)

    def places(self, row_ids: th.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and environments of row ids."""
        ids = row_ids.cpu().numpy()
        return ids // self.buffer.n_envs, ids % self.buffer.n_envs

    def draw(self, n: int, generator: th.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` real observations, uniformly with replacement, and return their positions and environments."""
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
        Return transitions.

        :param n: the number of rows, drawn uniformly with replacement; ``None``: all rows, oldest first
        :param generator: the source of randomness
        :raises ValueError: when there are no rows, or real data is not finite
        """
        rows, envs = self._usable()
        self._refuse_empty(len(rows))
        if n is not None:
            index = th.randint(len(rows), (n,), generator=generator).numpy()
            rows, envs = rows[index], envs[index]
        return self.transitions_at(rows, envs)

    def transitions_at(self, rows: np.ndarray, envs: np.ndarray) -> Transitions:
        """
        Return the transitions of given rows.

        :param rows: positions, ``(N,)``
        :param envs: environments, ``(N,)``
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
        Draw ``n`` windows of ``length`` consecutive steps of one environment each, uniformly.

        With ``optimize_memory_usage`` the next observation of a step that ends its episode is not known, and the step's own
        observation takes its place.

        :raises ValueError: when the buffer holds fewer steps than a window has
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
        Draw windows that lie within the newest ``within`` steps and within one episode.

        :param n: the largest number of windows, drawn without replacement
        :param length: the number of steps of a window
        :param within: the number of newest steps per environment
        :param generator: the source of randomness
        :return: the windows; ``None`` if there is no such window
        """
        positions = self.positions()[-within:]
        if len(positions) < length:
            return None
        ends = self.buffer.dones[positions]
        # A window may end with the end of an episode, but not run across one: among all its steps but the last, no episode
        # ends. `crossed[t]` counts the ends before step t, so the ends in [t, t + length - 1) are a difference of two entries.
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
        Return windows that end in given rows, padded on the left by repeating the episode's first step.

        :param rows: positions, ``(N,)``
        :param envs: environments, ``(N,)``
        :param length: the number of steps of a window
        :param extra: the names of values of the side store to add
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
        Tell which steps a window may not reach back across: the first ones of episodes.

        :param positions: ``(T,)``, oldest first
        :return: ``(T, n_envs)`` booleans
        """
        begins = np.ones((len(positions), self.buffer.n_envs), dtype=bool)
        begins[1:] = self.buffer.dones[positions[:-1]] > 0
        return begins

    # ---- gathering

    def windows(self, rows: np.ndarray, envs: np.ndarray, extra: Iterable[str] = ()) -> Sequences:
        """
        Return windows of given rows, which are consecutive along the second axis.

        :param rows: positions, ``(N, L)``
        :param envs: environments, ``(N, L)``
        :param extra: the names of values of the side store to add
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
            raise ValueError(
                f"The replay buffer has no side store, so no {name!r} is stored with its rows: ask for no extra values"
            )
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
                    "Real data must be finite: repair the environment or remove the rows."
                )


class RowCount:
    """
    The number of transitions of a replay buffer, ``len(ReplayData(buffer))``, without a look at all rows at every step.

    :param buffer: the replay buffer, which only grows while it is counted
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self._count()

    def _count(self) -> None:
        """Count the ends of episodes among all stored rows."""
        buffer = self.buffer
        self._ends = buffer.dones > 0
        self._ends[buffer.size() :] = False
        self._total = int(self._ends.sum())
        self._pos, self._full = buffer.pos, buffer.full

    def __call__(self) -> int:
        """Return the number of transitions now."""
        buffer = self.buffer
        if not buffer.optimize_memory_usage:
            return buffer.size() * buffer.n_envs
        steps = (buffer.pos - self._pos) % buffer.buffer_size
        if (buffer.full and not self._full and buffer.pos >= self._pos) or (self._full and not buffer.full):
            self._count()  # it was replaced, or filled by more rows than the positions tell
        else:
            # The newest row of before once more: it may have been cut off since.
            rows = (self._pos - 1 + np.arange(steps + 1)) % buffer.buffer_size
            rows = rows[rows < buffer.size()]
            ends = buffer.dones[rows] > 0
            self._total += int(ends.sum()) - int(self._ends[rows].sum())
            self._ends[rows] = ends
            self._pos, self._full = buffer.pos, buffer.full
        # Rows that end an episode do not count (see ReplayData), nor does the oldest row of a full buffer.
        oldest = int((~self._ends[buffer.pos]).sum()) if buffer.full else 0
        return buffer.size() * buffer.n_envs - self._total - oldest


class SelectedRows(ReplayData):
    """
    A view of some rows of a replay buffer, within which all windows lie. It is made for one fit: it does not follow a buffer
    that grows.

    :param data: the view of all rows
    :param selected: ``(buffer_size, n_envs)`` booleans: whether a row belongs to the view
    :param held_out: the result of :meth:`held_out`
    """

    def __init__(self, data: ReplayData, selected: np.ndarray, held_out: ReplayData | None = None) -> None:
        super().__init__(data.buffer, data.side, data.stored)
        self.selected = selected
        self._held_out = held_out
        self._starts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def held_out(self) -> ReplayData | None:
        """Return the rows that were held out of this view."""
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
        raise NotImplementedError("newest() is a method of the view of the whole buffer: call it there")

    def _begins(self, positions: np.ndarray) -> np.ndarray:
        begins = super()._begins(positions)
        selected = self.selected[positions]
        # A window that ends after a gap of steps that are not selected must not reach back across it.
        begins[1:] |= selected[1:] & ~selected[:-1]
        return begins

    def full_contexts(self, length: int) -> th.Tensor:
        """
        Return the rows whose context is not cut short by rows that are not selected.

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
    """Return, for every step, the index of the last step up to it at which ``begins`` is true (or 0), ``(T, n_envs)``."""
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins))[:, None], 0), axis=0)


def _windows_within(selected: np.ndarray, length: int) -> np.ndarray:
    """
    Tell at which steps windows begin that consist of selected steps only.

    :param selected: ``(T, n_envs)`` booleans
    :param length: the number of steps of a window
    :return: ``(max(0, T - length + 1), n_envs)`` booleans
    """
    # The plain version: selected[t : t + length].all() for every t. With running sums the cost does not grow with the length:
    # a window is selected if the number of rows left out before its end equals the number before its beginning.
    if len(selected) < length:
        return np.zeros((0, selected.shape[1]), dtype=bool)
    left_out = np.concatenate([np.zeros((1, selected.shape[1]), dtype=np.int64), (~selected).cumsum(0)])
    return left_out[length:] == left_out[: len(left_out) - length]


def _gather(arrays: Arrays, pick: Callable[[np.ndarray], np.ndarray]) -> Obs:
    """Pick rows of arrays, and convert them to tensors of the types of :func:`~sb3_mbrl.spaces.torch_dtype`."""
    if isinstance(arrays, dict):
        return {key: as_tensor(pick(array)) for key, array in arrays.items()}
    return as_tensor(pick(arrays))
