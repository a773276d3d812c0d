"""``random``: random shooting (Nagabandi et al. 2018, section IV.B; PETS's baseline)."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_mbrl.planners.base import SequencePlanner, Task, best_of
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import State


class RandomShooting(SequencePlanner):
    """
    A planner that tries uniformly random sequences and takes the first action of the best one. Nothing is carried over.

    :param action_space: the action space of the environment
    :param horizon: the number of steps to look ahead. In a longer sequence the first action has a smaller share in the return,
        and the random actions after it hide its effect
    :param population: the number of sequences; PETS's baseline draws 2,000 to 2,500
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.base.SequencePlanner`
    """

    def __init__(self, action_space: spaces.Space, *, horizon: int = 15, population: int = 2000, **kwargs: Any) -> None:
        super().__init__(action_space, horizon=horizon, population=population, **kwargs)

    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        count = task.rows * self.population * self.horizon
        drawn = sample_actions(self.action_space, count, task.generator, task.model.device)
        actions = drawn.view(task.rows, self.population, self.horizon, -1)
        if task.prior_sequences is not None:
            actions = th.cat([actions, task.prior_sequences], dim=1)
        best, value = best_of(actions, task.score(actions).returns)
        return best, {}, value
