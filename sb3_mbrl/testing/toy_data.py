"""Small real data with known dynamics, for any observation and action space of SB3."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_mbrl.buffers.replay_view import ReplayData, SideStore
from sb3_mbrl.contracts import Obs, Sequences, Transitions
from sb3_mbrl.spaces import ActionCodec, torch_dtype
from sb3_mbrl.trees import State, tree_index, tree_map, tree_where


@dataclass(frozen=True)
class Case:
    """
    A pair of spaces that a part is tried with.

    :param name: the name in messages
    :param observation_space: the observation space
    :param action_space: the action space
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space


def _box(low: float | list[float], high: float | list[float], shape: tuple[int, ...], dtype: type = np.float32) -> spaces.Box:
    return spaces.Box(np.broadcast_to(low, shape).astype(dtype), np.broadcast_to(high, shape).astype(dtype), shape, dtype)


CASES = (
    # The actions' bounds are neither -1 and 1 nor all symmetric, so that a model that mixes up scaled actions and the
    # environment's units fails.
    Case("box", _box(-5.0, 5.0, (3,)), _box([-2.0, 0.0], [2.0, 3.0], (2,))),
    Case("discrete-actions", _box(-np.inf, np.inf, (4,)), spaces.Discrete(3)),
    Case("discrete", spaces.Discrete(6), spaces.Discrete(3)),
    Case("multi-discrete", spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([2, 3])),
    Case("multi-binary", spaces.MultiBinary(4), spaces.MultiBinary(2)),
    Case("dict", spaces.Dict(mode=spaces.Discrete(3), position=_box(-1.0, 1.0, (2,))), _box(-1.0, 1.0, (1,))),
    Case("matrix", _box(-1.0, 1.0, (2, 3), np.float64), _box(-1.0, 1.0, (2, 2), np.float64)),
    Case("image", spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Discrete(4)),
)
"""The spaces that the kit tries a world model with: each must be taken, or refused with ``UnsupportedSpace``."""


class ToySystem:
    """
    A noise-free system for all spaces. With ``u = M a``, ``a`` the encoded action and every row of ``|M|`` summing to 1:

    * continuous values, mapped to [-1, 1] if they are bounded: ``z' = 0.6 z + 0.4 u``
    * categories and bits: ``s' = (s + (u > 0)) mod n``
    * reward: the mean of the next values (categories: of ``2 s' / (n - 1) - 1``)
    * termination: the first of them exceeds 0.25

    :param observation_space: any observation space of SB3
    :param action_space: any action space of SB3
    :param seed: the seed of ``M``
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, seed: int = 0) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._codec = ActionCodec(action_space)
        generator = th.Generator().manual_seed(seed)
        named = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self._mixing: dict[str, th.Tensor] = {}
        for key, space in named.items():
            size = int(np.prod(space.shape)) if space.shape else 1
            mixing = 2 * th.rand((size, self._codec.dim), generator=generator) - 1
            self._mixing[key] = mixing / mixing.abs().sum(1, keepdim=True)

    def sample_actions(self, n: int, generator: th.Generator) -> th.Tensor:
        """Draw ``n`` random actions as SB3's replay buffer stores them."""
        space = self.action_space
        if isinstance(space, spaces.Box):
            return 2 * th.rand((n, int(np.prod(space.shape))), generator=generator) - 1
        if isinstance(space, spaces.MultiBinary):
            return th.randint(2, (n, int(np.prod(space.shape))), generator=generator)
        categories: Any = space  # Discrete or MultiDiscrete
        nvec = th.as_tensor([categories.n] if isinstance(space, spaces.Discrete) else categories.nvec)
        first = th.as_tensor(np.atleast_1d(categories.start))
        return (th.rand((n, len(nvec)), generator=generator) * nvec).long() + first

    def sample_starts(self, n: int, generator: th.Generator) -> Obs:
        """Draw ``n`` observations to start an episode from."""

        def draw(key: str, space: spaces.Space) -> th.Tensor:
            uniform = th.rand((n, len(self._mixing[key])), generator=generator)
            if isinstance(space, spaces.Box):
                return _render(space, uniform - 0.5)
            return _render(space, (uniform * _sizes(space)).long())

        return self._per_key(draw)

    def step(self, obs: Obs, action: th.Tensor) -> tuple[Obs, th.Tensor, th.Tensor]:
        """
        Make one step.

        :param obs: the observations, ``(B, ...)``
        :param action: the actions, ``(B, A)``, scaled
        :return: next observations, rewards ``(B,)``, terminations ``(B,)`` as floats
        """
        features = self._codec.encode(action)
        views: list[th.Tensor] = []

        def move(key: str, space: spaces.Space) -> th.Tensor:
            value = obs[key] if isinstance(obs, dict) else obs
            push = features @ self._mixing[key].T
            if isinstance(space, spaces.Box):
                following = _render(space, 0.6 * _numbers(space, value) + 0.4 * push)
                views.append(_numbers(space, following))
            else:
                sizes, first = _sizes(space), _first(space)
                state = (value.flatten(1).long() - first + (push > 0)) % sizes
                following = _render(space, state)
                views.append(2.0 * state / (sizes - 1) - 1.0)
            return following

        next_obs = self._per_key(move)
        view = th.cat(views, dim=1)
        return next_obs, view.mean(1), (view[:, 0] > 0.25).float()

    def _per_key(self, function: Callable[[str, spaces.Space], th.Tensor]) -> Obs:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: function(key, space) for key, space in self.observation_space.spaces.items()}
        return function("", self.observation_space)


def _sizes(space: Any) -> th.Tensor:
    """Return the number of values of every category or bit, ``(n,)``."""
    if isinstance(space, spaces.MultiBinary):
        return th.full((int(np.prod(space.shape)),), 2)
    return th.as_tensor([space.n] if isinstance(space, spaces.Discrete) else space.nvec).flatten()


def _first(space: spaces.Space) -> th.Tensor:
    return th.as_tensor(np.atleast_1d(getattr(space, "start", 0))).flatten()


def _affine(space: spaces.Box) -> tuple[th.Tensor, th.Tensor]:
    """Return centre and half-width of every value's range (0 and 1 without bounds)."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    centre, half = (low / 2 + high / 2).flatten(), (high / 2 - low / 2).flatten()
    return th.as_tensor(centre, dtype=th.float32), th.as_tensor(half, dtype=th.float32)


def _numbers(space: spaces.Box, value: th.Tensor) -> th.Tensor:
    centre, half = _affine(space)
    return (value.flatten(1).float() - centre) / half


def _render(space: spaces.Space, value: th.Tensor) -> th.Tensor:
    """Convert inner values ``(B, n)`` to observations in the layout of SB3's replay buffer."""
    assert space.dtype is not None
    dtype = torch_dtype(space.dtype)
    if isinstance(space, spaces.Box):
        centre, half = _affine(space)
        value = value * half + centre
        return (value if dtype.is_floating_point else value.round()).reshape(-1, *space.shape).to(dtype)
    value = value + _first(space)
    return (value.reshape(-1, *space.shape) if isinstance(space, spaces.MultiBinary) else value).to(dtype)


_FIRST_ID = 10_000
"""The id of the first row. It is not 0, so that code which confuses ids with indices fails"""


class ToyData:
    """
    A set of real data in memory that implements :class:`~sb3_mbrl.contracts.Data`: a :class:`ToySystem` under random actions.

    :param observation_space: any observation space of SB3
    :param action_space: any action space of SB3
    :param steps: the number of steps per environment
    :param n_envs: the number of environments side by side, as in a replay buffer of SB3
    :param episode_length: the time limit
    :param seed: the seed of starts and actions (not of the system)
    :param constant: whether every transition is the first one, unchanged
    :param noise: whether next observations and rewards are drawn anew, so that there is nothing to learn; only the time limit
        ends episodes
    :param extra: the values of a side store, by name, with the shape of the value of one step: they are drawn from [0, 1)
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        steps: int = 100,
        n_envs: int = 4,
        episode_length: int = 20,
        seed: int = 0,
        constant: bool = False,
        noise: bool = False,
        extra: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.system = system = ToySystem(observation_space, action_space)
        generator = th.Generator().manual_seed(seed)
        obs = system.sample_starts(n_envs, generator)
        action = system.sample_actions(n_envs, generator)
        age = th.zeros(n_envs, dtype=th.long)
        rows: list[Sequences] = []
        for _ in range(steps):
            next_obs, reward, terminated = system.step(obs, action)
            if constant:
                next_obs, reward, terminated = obs, th.zeros(n_envs), th.zeros(n_envs)
            if noise:
                next_obs = system.sample_starts(n_envs, generator)
                reward, terminated = th.randn(n_envs, generator=generator), th.zeros(n_envs)
            is_last = (terminated > 0) | (age + 1 >= episode_length)
            rows.append(Sequences(obs, action, next_obs, reward, terminated, age == 0, is_last))
            age = th.where(is_last, 0, age + 1)
            if not constant:
                obs = tree_where(is_last, system.sample_starts(n_envs, generator), next_obs)
                action = system.sample_actions(n_envs, generator)
        self._rows: Sequences = tree_map(lambda *leaves: th.stack(leaves), rows[0], *rows[1:])
        """All steps, ``(T, n_envs, ...)``"""
        self._steps, self._n_envs = steps, n_envs
        self._side = {name: th.rand((steps, n_envs, *shape), generator=generator) for name, shape in (extra or {}).items()}
        index = th.arange(steps)[:, None].expand(steps, n_envs)
        self._episode_start = th.where(self._rows.is_first, index, 0).cummax(0).values

    def __len__(self) -> int:
        return self._steps * self._n_envs

    def transitions(self, n: int | None = None, *, generator: th.Generator | None = None) -> Transitions:
        rows = tree_map(lambda leaf: leaf.flatten(0, 1), self._rows)
        if n is not None:
            rows = tree_index(rows, th.randint(len(self), (n,), generator=generator))
        return Transitions(rows.obs, rows.action, rows.next_obs, rows.reward, rows.terminated)

    def held_out(self) -> None:
        """Return ``None``: nothing is held out."""

    def in_replay_buffer(self) -> ReplayData:
        """Return the library's view on the same rows in a replay buffer of SB3."""
        rows, space = self._rows, self.system.observation_space
        kind: Any = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
        buffer = kind(self._steps * self._n_envs, space, self.system.action_space, device="cpu", n_envs=self._n_envs)
        side = SideStore(buffer)
        for t in range(self._steps):
            for name, values in self._side.items():
                side.put(name, t, values[t].numpy())
            obs, next_obs = (
                {key: leaf[t].numpy() for key, leaf in value.items()} if isinstance(value, dict) else value[t].numpy()
                for value in (rows.obs, rows.next_obs)
            )
            truncated = rows.is_last[t] & (rows.terminated[t] == 0)
            infos = [{"TimeLimit.truncated": bool(flag)} for flag in truncated]
            buffer.add(obs, next_obs, rows.action[t].numpy(), rows.reward[t].numpy(), rows.is_last[t].numpy(), infos)
        return ReplayData(buffer, side)

    def sequences(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        if self._steps < length:
            raise ValueError(f"Windows of {length} steps were asked for, but there are {self._steps} per environment")
        begin = th.randint(self._steps - length + 1, (n,), generator=generator)
        env = th.randint(self._n_envs, (n,), generator=generator)
        return self._windows(begin[:, None] + th.arange(length), env, extra)

    def contexts(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        end, env = th.randint(self._steps, (n,), generator=generator), th.randint(self._n_envs, (n,), generator=generator)
        first = self._episode_start[end, env][:, None]
        steps = end[:, None] + th.arange(1 - length, 1)
        window = self._windows(steps.clamp(min=first), env, extra)
        return window._replace(is_first=window.is_first | (steps <= first))

    def row_ids(self) -> th.Tensor:
        return _FIRST_ID + th.arange(len(self))

    def episode_starts(self) -> th.Tensor:
        return self.row_ids()[self._rows.is_first.flatten()]

    def _windows(self, steps: th.Tensor, env: th.Tensor, extra: Iterable[str]) -> Sequences:
        window: State = tree_map(lambda leaf: leaf[steps, env[:, None]], self._rows)
        is_first = window.is_first.clone()
        is_first[:, 0] = True
        values = {name: self._side[name][steps, env[:, None]] for name in extra}
        return window._replace(is_first=is_first, extra=values, ids=_FIRST_ID + steps * self._n_envs + env[:, None])
