"""The imagined buffer: a first-in, first-out store of imagined transitions, with an age limit."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.contracts import Imagined
from sb3_mbrl.trees import State, tree_leaves, tree_map

_FIELDS = ("obs", "action", "next_obs", "reward", "terminated", "discount", "weight")
"""The fields of :class:`~sb3_mbrl.contracts.Imagined` that are stored"""


class ImaginedBuffer:
    """
    A ring buffer of imagined rows on the learner's device. Rows are added in batches, and dropped when they are too old or
    their place is needed.

    :param capacity: the number of rows
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: an imagined buffer needs at least one row")
        self.capacity = capacity
        self._rows: dict[str, State] | None = None
        self._head = 0  # where the next row goes
        self._size = 0
        self._batches: list[tuple[int, int]] = []  # (birth, rows still stored), oldest first

    def __len__(self) -> int:
        return self._size

    def extend(self, imagined: Imagined, birth: int) -> int:
        """
        Store the valid rows of a rollout.

        :param imagined: ``(T, B, ...)``
        :param birth: the number of real environment steps at the time of the rollout
        :return: the number of rows that were stored
        """
        valid = imagined.valid
        if imagined.weight is not None:  # a row that is never drawn takes no place
            valid = valid & (imagined.weight > 0) & imagined.weight.isfinite()
        index = valid.flatten().nonzero().flatten()
        fields = {name: getattr(imagined, name) for name in _FIELDS}
        rows = tree_map(lambda leaf: leaf.detach().flatten(0, 1)[index], fields)
        n = len(index)
        if n > self.capacity:
            rows, n = tree_map(lambda leaf: leaf[-self.capacity :], rows), self.capacity
        if n == 0:
            return 0
        if self._rows is not None and any((self._rows[name] is None) != (rows[name] is None) for name in _FIELDS):
            # The agent was loaded with another ``n_steps`` than it was saved with: these rows have other fields.
            self.clear()
            self._rows = None
        if self._rows is None:
            self._rows = tree_map(lambda leaf: leaf.new_zeros((self.capacity, *leaf.shape[1:])), rows)
        place = (self._head + th.arange(n)) % self.capacity
        for stored, new in zip(tree_leaves(self._rows), tree_leaves(rows), strict=True):
            stored[place.to(stored.device)] = new
        self._head = (self._head + n) % self.capacity
        self._batches.append((birth, n))
        self._size += n
        self._drop(self._size - self.capacity)
        return n

    def forget_before(self, birth: int) -> None:
        """Drop rows that were imagined before ``birth`` real environment steps."""
        self._drop(sum(rows for born, rows in self._batches if born < birth))

    def _drop(self, n: int) -> None:
        """Drop the ``n`` oldest rows."""
        self._size -= max(n, 0)
        while n > 0:
            born, rows = self._batches.pop(0)
            if rows > n:
                self._batches.insert(0, (born, rows - n))
            n -= rows

    def resize(self, capacity: int) -> None:
        """Change the capacity, and keep the newest rows."""
        if capacity == self.capacity:
            return
        keep = min(self._size, capacity)
        index = (self._head - keep + th.arange(keep)) % self.capacity
        self._drop(self._size - keep)
        if self._rows is not None:

            def move(leaf: th.Tensor) -> th.Tensor:
                moved = leaf.new_zeros((capacity, *leaf.shape[1:]))
                moved[:keep] = leaf[index.to(leaf.device)]
                return moved

            self._rows = tree_map(move, self._rows)
        self.capacity, self._head = capacity, keep % capacity

    def clear(self) -> None:
        """Drop all rows, e.g. because the model is another one."""
        self._drop(self._size)

    def to_state(self) -> dict[str, Any]:
        """Return all rows as plain values and arrays, for a checkpoint: oldest first, without the free places."""
        index = (self._head - self._size + th.arange(self._size)) % self.capacity
        rows = None if self._rows is None else _arrays(tree_map(lambda leaf: leaf[index.to(leaf.device)], self._rows))
        return {"capacity": self.capacity, "rows": rows, "births": self._batches}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: th.device | str = "cpu") -> "ImaginedBuffer":
        """Make a buffer from the result of :meth:`to_state`."""
        new = cls(state["capacity"])
        new._batches = [tuple(batch) for batch in state["births"]]
        new._size = sum(rows for _, rows in new._batches)
        new._head = new._size % new.capacity
        if state["rows"] is not None:

            def placed(leaf: th.Tensor) -> th.Tensor:
                ring = leaf.new_zeros((new.capacity, *leaf.shape[1:]))
                ring[: new._size] = leaf
                return ring

            new._rows = tree_map(placed, _tensors(state["rows"], device))
        return new

    def draw(self, n: int, generator: th.Generator | None = None) -> dict[str, Any]:
        """
        Draw ``n`` rows with replacement: uniformly, or with probability proportional to their weights.

        :return: the fields of :class:`~sb3_mbrl.contracts.Imagined` by name, without the weights
        """
        if self._size == 0 or self._rows is None:
            raise ValueError("The imagined buffer is empty: imagine rollouts before sampling")
        if self._rows["weight"] is None:
            index = th.randint(self._size, (n,), generator=generator)
        else:
            # Inverse transform sampling, P(row i) = w_i / sum(w): row i is drawn where W_{i-1} <= u W_n < W_i, with the
            # running sums W of the weights. In double precision, in which the sum of many weights is exact enough.
            age_order = (self._head - self._size + th.arange(self._size)) % self.capacity
            cumulative = self._rows["weight"].cpu()[age_order].double().cumsum(0)
            uniform = th.rand(n, generator=generator, dtype=th.float64)
            index = th.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp(max=self._size - 1)
        index = (self._head - self._size + index) % self.capacity
        rows = {name: value for name, value in self._rows.items() if name != "weight"}
        return tree_map(lambda leaf: leaf[index.to(leaf.device)], rows)

    def sample(
        self, n: int, real: ReplayBuffer, env: VecNormalize | None = None, generator: th.Generator | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        Draw ``n`` rows as SB3's samples.

        :param n: the number of rows
        :param real: the real buffer, which has the methods for normalisation and the device
        :param env: the statistics for normalisation, since rows are stored raw
        :param generator: the source of randomness
        """
        rows = self.draw(n, generator)
        reward, obs, next_obs = rows["reward"][:, None], rows["obs"], rows["next_obs"]
        if env is not None:
            # The statistics of VecNormalize take numpy arrays.
            obs, next_obs = (normalised_obs(value, real, env) for value in (obs, next_obs))
            reward = th.as_tensor(real._normalize_reward(reward.cpu().numpy(), env))
        discount = rows["discount"]
        dones = rows["terminated"][:, None] if discount is None else th.zeros_like(rows["reward"])[:, None]
        samples = DictReplayBufferSamples if isinstance(obs, dict) else ReplayBufferSamples
        fields = (obs, rows["action"], next_obs, dones, reward, None if discount is None else discount[:, None])
        return samples(*tree_map(lambda leaf: leaf.to(real.device), fields))


def normalised_obs(obs: Any, real: ReplayBuffer, env: VecNormalize) -> Any:
    """Normalise raw observations, as the replay buffer does when it samples."""
    arrays = {key: value.cpu().numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu().numpy()
    normalised = real._normalize_obs(arrays, env)
    if isinstance(normalised, dict):
        return {key: th.as_tensor(value) for key, value in normalised.items()}
    return th.as_tensor(normalised)


def _arrays(rows: State) -> Any:
    """Convert nested tensors to arrays."""
    if isinstance(rows, dict):
        return {name: _arrays(value) for name, value in rows.items()}
    return None if rows is None else rows.detach().cpu().numpy()


def _tensors(rows: Any, device: th.device | str) -> State:
    """Convert the result of :func:`_arrays` back."""
    if isinstance(rows, dict):
        return {name: _tensors(value, device) for name, value in rows.items()}
    return None if rows is None else th.as_tensor(rows).to(device)
