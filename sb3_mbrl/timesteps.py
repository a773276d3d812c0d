"""
The conversion of real steps to Dreamer's layout: each observation with the action and the reward that led to it.

SB3 stores ``(obs, action, reward, next_obs)``; the last observation of an episode exists only as the ``next_obs`` of its last
step. Here it gets a row of its own, without which a model would never see where episodes end. For a window of four steps,
of which step 1 ends an episode (``obs' 1`` is its next observation)::

    steps:       obs 0    obs 1    obs 2    obs 3
    is_last:       -        x        -        -
    timesteps:   obs 0    obs 1    obs' 1   obs 2       (obs 3 no longer fits in)
    action:        -      act 0    act 1      -
"""

import torch as th

from sb3_mbrl.contracts import Sequences, Timesteps
from sb3_mbrl.trees import tree_map


def to_timesteps(windows: Sequences) -> tuple[Timesteps, th.Tensor]:
    """
    Convert windows of steps to windows of timesteps of the same length.

    Every end of an episode takes one more row, so the last steps of a window may not fit in.

    :param windows: real steps, as SB3 stores them
    :return: the timesteps, and the indices ``(N, L)`` of the steps that their observations come from: a step's own
        observation, or its next observation where ``is_last``
    """
    length, ends = windows.reward.shape[1], windows.is_last
    # A step moves back by one row for every end before it.
    ends_before = ends.long().cumsum(1) - ends.long()
    row_of_step = th.arange(length, device=ends.device) + ends_before
    window = th.arange(len(ends), device=ends.device)[:, None].expand_as(row_of_step)
    # The inverse: for each row, the step whose observation it has.
    step, fits = th.zeros_like(row_of_step), row_of_step < length
    step[window[fits], row_of_step[fits]] = th.arange(length, device=ends.device).expand_as(row_of_step)[fits]
    # The next observation of a last step follows in the next row.
    last = th.zeros_like(ends)
    end_fits = ends & (row_of_step + 1 < length)
    step[window[end_fits], row_of_step[end_fits] + 1] = th.arange(length, device=ends.device).expand_as(row_of_step)[end_fits]
    last[window[end_fits], row_of_step[end_fits] + 1] = True

    def pick(values: th.Tensor, index: th.Tensor) -> th.Tensor:
        return values[th.arange(len(values), device=values.device)[:, None], index]

    obs = tree_map(lambda own, after: _where(last, pick(after, step), pick(own, step)), windows.obs, windows.next_obs)
    # The last observation of an episode was reached by its own step's action; any other by that of the step before.
    reached_by = th.where(last, step, (step - 1).clamp(min=0))
    first = pick(windows.is_first, step) & ~last
    first[:, 0] = True
    action = pick(windows.action, reached_by)
    timesteps = Timesteps(
        obs,
        _where(first, th.zeros_like(action), action),
        pick(windows.reward, reached_by).masked_fill(first, 0.0),
        first,
        last,
        pick(windows.terminated, step) * last,
    )
    return timesteps, step


def _where(mask: th.Tensor, yes: th.Tensor, no: th.Tensor) -> th.Tensor:
    """Choose row by row, with a mask ``(N, L)`` for values ``(N, L, ...)``."""
    return th.where(mask.view(*mask.shape, *[1] * (no.dim() - 2)), yes, no)
