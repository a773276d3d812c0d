"""Priorities of stored rows, and drawing rows in proportion to them."""

import numpy as np
import torch as th


class Priorities:
    """
    Prioritised replay (Schaul et al. 2016): row ``i`` is drawn with the probability ``P_i = p_i^alpha / sum_j p_j^alpha`` and
    weighted by ``(N P_i)^-beta``, divided by the largest weight of a batch.

    New rows have the largest priority so far, so that all are drawn soon.

    :param shape: the shape of the replay buffer, ``(buffer_size, n_envs)``
    :param alpha: how much priorities count; 0: rows are drawn uniformly
    :param beta: how much of the bias the weights take away; 1: all of it
    """

    def __init__(self, shape: tuple[int, int], alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.values = np.zeros(shape)
        self.largest = 1.0

    def added(self, position: int) -> None:
        """Give the rows at a position the largest priority."""
        self.values[position] = self.largest

    def draw(self, positions: np.ndarray, n: int, generator: th.Generator | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Draw rows with replacement.

        :param positions: the positions to choose from, ``(P,)``
        :param n: the number of rows
        :param generator: the source of randomness
        :return: the places among ``positions``, the environments, and the weights, ``(n,)`` each
        """
        uniform = th.rand(n, generator=generator, dtype=th.float64).numpy()
        n_envs = self.values.shape[1]
        if self.alpha == 0:
            index = np.minimum((uniform * len(positions) * n_envs).astype(np.int64), len(positions) * n_envs - 1)
            return index // n_envs, index % n_envs, np.ones(n)
        scaled = self.values[positions].ravel() ** self.alpha
        sums = scaled.cumsum()
        # Inverse transform sampling: row i is drawn where sums[i - 1] <= u sums[-1] < sums[i].
        index = np.minimum(np.searchsorted(sums, uniform * sums[-1], side="right"), len(sums) - 1)
        weights = (len(sums) * scaled[index] / sums[-1]) ** -self.beta
        return index // n_envs, index % n_envs, weights / weights.max()

    def update(self, positions: np.ndarray, envs: np.ndarray, priorities: np.ndarray) -> None:
        """
        Replace priorities.

        :param priorities: at least 0, such as absolute errors, ``(n,)``
        """
        priorities = priorities + 1e-6  # no row is lost for good
        self.values[positions, envs] = priorities
        self.largest = max(self.largest, float(priorities.max()))

    # ---- saving

    def state_dict(self) -> dict[str, object]:
        """Return plain values, to save them with the replay buffer."""
        return {"values": self.values, "largest": self.largest}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.values[:] = state["values"]
        self.largest = float(state["largest"])
