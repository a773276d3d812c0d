"""Data beside the replay buffer: values that SB3's rows have no place for."""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer


class SideStore:
    """
    What SB3's rows have no place for (an oracle's snapshots, replay latents, priorities), aligned with them on ``(pos, env)``.

    :param buffer: the replay buffer to be aligned with
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.arrays: dict[str, np.ndarray] = {}
        self._written: dict[str, np.ndarray] = {}

    def put(self, name: str, pos: int, value: np.ndarray) -> None:
        """
        :param name: what is stored
        :param pos: the row
        :param value: ``(n_envs, ...)``
        """
        self._make(name, value.shape[1:], value.dtype)
        self.arrays[name][pos] = value
        self._written[name][pos] = True

    def put_rows(self, name: str, rows: np.ndarray, envs: np.ndarray, value: np.ndarray) -> None:
        """
        :param name: what is stored
        :param rows: ``(N,)``
        :param envs: ``(N,)``
        :param value: ``(N, ...)``
        """
        self._make(name, value.shape[1:], value.dtype)
        self.arrays[name][rows, envs] = value

    def _make(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if name not in self.arrays:
            self.arrays[name] = np.zeros((self.buffer.buffer_size, self.buffer.n_envs, *shape), dtype=dtype)
            self._written[name] = np.zeros(self.buffer.buffer_size, dtype=bool)

    def state(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What is to be saved with the buffer: by name, the values and which of them were written."""
        n = self.buffer.size()
        return {name: (values[:n], self._written[name][:n]) for name, values in self.arrays.items()}

    def restore(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Take back what :meth:`state` gave."""
        for name, (values, written) in state.items():
            self._make(name, values.shape[2:], values.dtype)
            self.arrays[name][: len(values)], self._written[name][: len(written)] = values, written

    def written(self, name: str) -> np.ndarray:
        """``(buffer_size,)`` booleans: the rows with which something was stored."""
        return self._written.get(name, np.zeros(self.buffer.buffer_size, dtype=bool))

    def get(self, name: str, rows: np.ndarray, envs: np.ndarray) -> th.Tensor:
        """``(N, ...)``: what was stored with these rows."""
        if not self.written(name)[rows].all() or not len(rows):
            raise ValueError(
                f"The replay buffer has no {name!r} stored with some of its rows: they were collected by another agent or "
                "loaded from a file. Start with an empty buffer, or choose a world model that needs observations only."
            )
        return th.as_tensor(self.arrays[name][rows, envs])
