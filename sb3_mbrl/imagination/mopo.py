"""``mopo``: rollouts whose rewards are lowered where the model is uncertain (Yu et al., NeurIPS 2020, arXiv 2005.13239)."""

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.imagination.branched import BranchedRollouts, Progress, Step
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.uncertainty import check_members, largest_deviation
from sb3_mbrl.trees import State


class PenalisedRollouts(BranchedRollouts):
    """
    Branched rollouts with the reward ``r - penalty * u``: the policy stays where the model knows what happens. Made for data
    that no real step adds to.

    ``u`` is the largest norm, over members, of the standard deviations that they predict for the next observation, in units of
    observations (:func:`~sb3_mbrl.imagination.uncertainty.largest_deviation`). The authors' includes the reward's.

    :param horizon: the number of steps; the authors have 1 or 5
    :param penalty: the authors' ``lambda``: 0.5 to 5 for MuJoCo's bodies
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    needs_members = True
    changes_rewards = True

    def __init__(self, horizon: int | Sequence[int] | HorizonSchedule = 5, penalty: float = 1.0, **kwargs: Any) -> None:
        self.penalty = number("penalty", penalty, 0.0)
        super().__init__(horizon, **kwargs)

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        check_members(world_model, noise=True, least=1)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        prediction = world_model.step(state, action, generator=generator)
        uncertainty = largest_deviation(world_model.members(state, action))
        return Step(prediction._replace(reward=prediction.reward - self.penalty * uncertainty))
