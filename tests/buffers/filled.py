"""Replay buffers, windows and rollouts whose contents are known."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.contracts import Imagined, Sequences


def windows(ends, terminated):
    """One window; observation ``t`` is 10 t, next observation 10 t + 1 where an episode ends, rewards are t."""
    length = len(ends)
    t, ends = th.arange(length), th.tensor(ends, dtype=th.bool)
    following = th.where(ends, 10 * t + 1, 10 * (t + 1)).float()
    first = th.cat([th.ones(1, dtype=th.bool), ends[:-1]])
    rows = (10.0 * t[:, None], t[:, None].float(), following[:, None], t.float(), th.tensor(terminated).float(), first, ends)
    return Sequences(*(row[None] for row in rows))


OBS, ACT = spaces.Box(-1e6, 1e6, (1,)), spaces.Box(-1, 1, (1,))


def filled(
    steps: int,
    size: int = 50,
    n_envs: int = 1,
    episode: int = 7,
    *,
    truncate_every: int = 2,
    cls: type[ReplayBuffer] = ReplayBuffer,
    **kwargs,
) -> ReplayBuffer:
    """Episodes of ``episode`` steps; every ``truncate_every``-th ends by a time limit. At a reset, time jumps by 10."""
    buffer = cls(size * n_envs, OBS, ACT, n_envs=n_envs, **kwargs)
    time, count, number = 0.0, 0, 0
    envs = 1000.0 * np.arange(n_envs)[:, None]
    for _ in range(steps):
        count += 1
        done = count == episode
        truncated = done and number % truncate_every == 1
        infos = [{"TimeLimit.truncated": truncated} for _ in range(n_envs)]
        action, reward = np.full((n_envs, 1), 0.5), np.full(n_envs, time)
        buffer.add(envs + time, envs + time + 1, action, reward, np.full(n_envs, done), infos)
        time += 11 if done else 1
        if done:
            count, number = 0, number + 1
    return buffer


def rollout(first: int, rows: int, *, horizon: int = 1, valid=None, discount=None) -> Imagined:
    """Rows that count from ``first``."""
    reward = th.arange(first, first + horizon * rows, dtype=th.float32).view(horizon, rows)
    mask = th.ones(horizon, rows, dtype=th.bool) if valid is None else valid
    given = None if discount is None else th.full((horizon, rows), discount)
    obs = reward[..., None]
    return Imagined(obs, th.zeros(horizon, rows, 1), obs + 1, reward, th.zeros(horizon, rows), given, mask)
