"""The side store: values that belong to rows of the replay buffer, but have no place in SB3's arrays."""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer


class SideStore:
    """
    A store of arrays beside SB3's replay buffer (an oracle's snapshots, replay latents, priorities), with the same index
    ``(pos, env)``.

    :param buffer: the replay buffer
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.arrays: dict[str, np.ndarray] = {}
        self._written: dict[str, np.ndarray] = {}

    def put(self, name: str, pos: int, value: np.ndarray) -> None:
        """
        Store values with the row of all environments.

        :param name: the name of the values
        :param pos: the position of the row
        :param value: ``(n_envs, ...)``
        """
        self._make(name, value.shape[1:], value.dtype)
        self.arrays[name][pos] = value
        self._written[name][pos] = True

    def put_rows(self, name: str, rows: np.ndarray, envs: np.ndarray, value: np.ndarray) -> None:
        """
        Store values with given rows.

        :param name: the name of the values
        :param rows: the positions of the rows, ``(N,)``
        :param envs: the environments of the rows, ``(N,)``
        :param value: ``(N, ...)``
        """
        self._make(name, value.shape[1:], value.dtype)
        self.arrays[name][rows, envs] = value

    def _make(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Allocate the array of a name, unless there is one."""
        if name not in self.arrays:
            self.arrays[name] = np.zeros((self.buffer.buffer_size, self.buffer.n_envs, *shape), dtype=dtype)
            self._written[name] = np.zeros(self.buffer.buffer_size, dtype=bool)

    def state(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the values to save with the buffer: for every name an array, and which of its rows were written."""
        n = self.buffer.size()
        return {name: (values[:n], self._written[name][:n]) for name, values in self.arrays.items()}

    def restore(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Restore the result of :meth:`state`."""
        for name, (values, written) in state.items():
            self._make(name, values.shape[2:], values.dtype)
            self.arrays[name][: len(values)], self._written[name][: len(written)] = values, written

    def written(self, name: str) -> np.ndarray:
        """Return which rows have values of a name, ``(buffer_size,)`` booleans."""
        return self._written.get(name, np.zeros(self.buffer.buffer_size, dtype=bool))

    def get(self, name: str, rows: np.ndarray, envs: np.ndarray) -> th.Tensor:
        """Return the values that were stored with given rows, ``(N, ...)``."""
        if not self.written(name)[rows].all() or not len(rows):
            raise ValueError(
                f"The replay buffer has no {name!r} stored with some of its rows: they were collected by another agent or "
                "loaded from a file. Start with an empty buffer, or choose a world model that needs observations only."
            )
        return th.as_tensor(self.arrays[name][rows, envs])
