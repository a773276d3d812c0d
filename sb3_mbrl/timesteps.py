"""
Real steps as Dreamer's papers have them: what was observed, with the action and the reward that led there.

SB3 stores ``(obs, action, reward, next_obs)``; the last observation of an episode is there as the ``next_obs`` of its last
step. Here it gets a row of its own, without which a model would never see where episodes end.
"""

import torch as th

from sb3_mbrl.contracts import Sequences, Timesteps
from sb3_mbrl.trees import tree_map


def to_timesteps(windows: Sequences) -> tuple[Timesteps, th.Tensor]:
    """
    As many rows per window as it has steps: every end of an episode takes one row more, so that the last steps may not fit in.

    :param windows: real steps, as SB3 stores them
    :return: the rows, and the steps ``(N, L)`` whose observation (or, where an episode ends, next observation) they have
    """
    length, ends = windows.reward.shape[1], windows.is_last
    # Where the observation of every step comes to lie, and that of every end.
    before = ends.long().cumsum(1) - ends.long()
    own = th.arange(length, device=ends.device) + before
    rows = th.arange(len(ends), device=ends.device)[:, None].expand_as(own)
    step, fits = th.zeros_like(own), own < length
    step[rows[fits], own[fits]] = th.arange(length, device=ends.device).expand_as(own)[fits]
    last = th.zeros_like(ends)
    at_end = ends & (own + 1 < length)
    step[rows[at_end], own[at_end] + 1] = th.arange(length, device=ends.device).expand_as(own)[at_end]
    last[rows[at_end], own[at_end] + 1] = True

    def pick(values: th.Tensor, index: th.Tensor) -> th.Tensor:
        return values[th.arange(len(values), device=values.device)[:, None], index]

    obs = tree_map(lambda here, there: _where(last, pick(there, step), pick(here, step)), windows.obs, windows.next_obs)
    # An end's row came by its own step; any other by the step before.
    came_by = th.where(last, step, (step - 1).clamp(min=0))
    first = pick(windows.is_first, step) & ~last
    first[:, 0] = True
    action = pick(windows.action, came_by)
    found = Timesteps(
        obs,
        _where(first, th.zeros_like(action), action),
        pick(windows.reward, came_by).masked_fill(first, 0.0),
        first,
        last,
        pick(windows.terminated, step) * last,
    )
    return found, step


def _where(mask: th.Tensor, yes: th.Tensor, no: th.Tensor) -> th.Tensor:
    return th.where(mask.view(*mask.shape, *[1] * (no.dim() - 2)), yes, no)
