"""``macura``: rollouts that end where the members disagree (Frauenknecht et al., ICML 2024, arXiv 2405.19014)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.imagination.branched import BranchedRollouts, Progress, Step
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.uncertainty import check_members, pairwise_divergence
from sb3_mbrl.trees import State


class TrustedRollouts(BranchedRollouts):
    """
    Branched rollouts that end before the first step at which the members' divergence ``u`` exceeds a threshold ``kappa``, so
    that no horizon has to be scheduled.

    ``u`` is the pairwise geometric Jensen-Shannon divergence of the members' next observations
    (:func:`~sb3_mbrl.imagination.uncertainty.pairwise_divergence`). ``kappa`` is ``factor`` times the ``quantile`` of ``u`` at
    the first steps, which begin in real states; it is averaged over all rollouts so far.

    The authors' ``factor`` is 2 for HalfCheetah, 5 for Ant and Humanoid, and 30, with a ``quantile`` of 0.9, for Hopper. Their
    divergence includes the reward's; here it is that of next observations alone. The mean ``threshold`` is logged.

    :param horizon: the largest number of steps
    :param factor: the authors' ``xi``
    :param quantile: the authors' ``zeta``, as a share
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    needs_members = True

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule = 10,
        factor: float = 2.0,
        quantile: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(horizon, **kwargs)
        self.factor, self.quantile = number("factor", factor, 0.0, open_low=True), number("quantile", quantile, 0.0, 1.0)
        self.threshold, self.rounds = 0.0, 0

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        check_members(world_model, noise=True)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        divergence = pairwise_divergence(world_model.members(state, action))
        if at.step == 0:
            self._move_threshold(divergence[at.running & divergence.isfinite()])
        trusted = divergence <= self.threshold  # equal where all members agree
        return Step(world_model.step(state, action, generator=generator), keep=trusted, go_on=trusted)

    def _move_threshold(self, divergence: th.Tensor) -> None:
        """Average the threshold over all rollouts: ``kappa <- kappa + (factor * quantile - kappa) / rounds``."""
        if not len(divergence):
            return
        self.rounds += 1
        new = self.factor * float(divergence.quantile(self.quantile))
        self.threshold += (new - self.threshold) / self.rounds

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.threshold, self.rounds = float(state["threshold"]), int(state["rounds"])
