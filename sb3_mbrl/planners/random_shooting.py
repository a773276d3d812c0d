"""``random``: random shooting (Nagabandi et al. 2018, section IV.B; PETS's baseline)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.planners.base import SequencePlanner, Task, best_of
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import State


class RandomShooting(SequencePlanner):
    """
    Uniformly random sequences, the best of which begins. Nothing is carried over.

    :param action_space: the real environment's
    :param horizon: steps that are looked ahead; the longer, the less the first action decides, and random sequences hide it
    :param population: PETS's baseline draws 2,000 to 2,500
    :param kwargs: of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    def __init__(self, action_space: spaces.Space, *, horizon: int = 15, population: int = 2000, **kwargs: Any) -> None:
        super().__init__(action_space, horizon=horizon, population=population, **kwargs)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        count = task.rows * self.population * self.horizon
        drawn = sample_actions(self.action_space, count, task.generator, task.model.device)
        actions = drawn.view(task.rows, self.population, self.horizon, -1)
        if task.prior_actions is not None:
            actions = th.cat([actions, task.prior_actions], dim=1)
        best, value = best_of(actions, task.score(actions).returns)
        return best, {}, value
