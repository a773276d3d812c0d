"""``wimle``: rollouts whose rows are weighted by the model's confidence (WIMLE, ICLR 2026, arXiv 2602.14351)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import LearnerView, ReplaySampler, WorldModel
from sb3_mbrl.imagination.branched import BranchedRollouts, Progress, Step
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.uncertainty import check_members, joint_deviation
from sb3_mbrl.trees import State


class ConfidentRollouts(BranchedRollouts):
    """
    Branched rollouts along the members' mean, whose rows have the weight ``c = 1 / (1 + scale * s)``.

    ``s`` is the standard deviation of the outcome over members and their noise
    (:func:`~sb3_mbrl.imagination.uncertainty.joint_deviation`), in the units of observations and rewards, as the authors'.

    The authors multiply a row's loss by ``c``, real rows counting 1, with as many rows of either kind. SB3's losses have no
    weights; so rows are drawn with probability proportional to ``c``, and the share of imagined rows in a batch is
    ``mean(c) / (1 + mean(c))``, which is the same gradient in expectation, up to a factor. The mean is that of the newest
    rollouts. ``real_ratio`` has no effect then; with ``balanced=False`` it sets the shares, and only the draws are weighted.

    :param horizon: the number of steps
    :param scale: the weight of ``s``: 1 in the paper. Observations in other units need another one
    :param balanced: whether the share of imagined rows follows their confidence
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    needs_members = True
    masks_rows = True  # a weight belongs to a single step

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule = 1,
        scale: float = 1.0,
        balanced: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(balanced, bool):
            raise ValueError(f"balanced={balanced!r}: give True or False")
        self.scale, self.balanced = number("scale", scale, 0.0), balanced
        self.uses_real_ratio = not balanced
        self.confidence = 1.0
        """The mean weight of the newest rollouts"""
        super().__init__(horizon, **kwargs)

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        check_members(world_model, noise=False)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        weight = 1 / (1 + self.scale * joint_deviation(world_model.members(state, action)))
        return Step(world_model.step(state, action, deterministic=True, generator=generator), weight=weight)

    def imagine(self, *args: Any, **kwargs: Any) -> Any:
        """Roll the world model out, and remember the mean weight of the rows."""
        imagined = super().imagine(*args, **kwargs)
        assert imagined.weight is not None  # predict() gives one to every row
        if bool(imagined.valid.any()):
            self.confidence = float(imagined.weight[imagined.valid].mean())
        return imagined._replace(info={**imagined.info, "confidence": self.confidence})

    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        """Mix the stored rollouts into the real rows, by their confidence."""
        return learner.mix(1 / (1 + self.confidence)) if self.balanced else learner.mix()

    def state_dict(self) -> dict[str, Any]:
        return {"confidence": self.confidence}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.confidence = float(state["confidence"])
