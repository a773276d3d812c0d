"""``m2ac``: rollouts of which the steps with the least disagreement are kept (Pan et al., NeurIPS 2020, arXiv 2010.04893)."""

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.imagination.branched import BranchedRollouts, Progress, Step
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.uncertainty import check_members, one_against_rest
from sb3_mbrl.rng import on_device
from sb3_mbrl.trees import State


class MaskedRollouts(BranchedRollouts):
    """
    Branched rollouts of which, at every step, the share of rows with the smallest uncertainty ``u`` is kept, with the reward
    ``r - penalty * u``. Rollouts go on after a step that was left out (the paper's *non-stop* mode).

    ``u`` is the divergence of the member that predicted the row from all others
    (:func:`~sb3_mbrl.imagination.uncertainty.one_against_rest`). Of ``H`` steps, the share that is kept at step ``h = 0, 1,
    ...`` is ``share`` for ``H = 1``, and else ``share (H - h) / (H + 1)``.

    :param horizon: the number of steps
    :param share: the share of rows that is kept
    :param penalty: the weight of the uncertainty, which is subtracted from rewards
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    needs_members = True
    changes_rewards = True
    masks_rows = True

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule = 1,
        share: float = 0.5,
        penalty: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        self.share, self.penalty = number("share", share, 0.0, 1.0, open_low=True), number("penalty", penalty, 0.0)
        super().__init__(horizon, **kwargs)

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        check_members(world_model, noise=True)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        device = action.device
        member = th.randint(world_model.n_choices, (len(action),), generator=on_device(generator, device), device=device)
        prediction = world_model.member_step(state, action, member, generator=generator)
        uncertainty = one_against_rest(world_model.members(state, action), member).to(device)
        prediction = prediction._replace(reward=prediction.reward - self.penalty * uncertainty)
        share = self.share if at.horizon == 1 else self.share * (at.horizon - at.step) / (at.horizon + 1)
        # The certain rows among those that still run: rows that have ended come last.
        order = th.where(at.running & uncertainty.isfinite(), uncertainty, th.inf).argsort(stable=True)
        keep = th.zeros_like(at.running)
        keep[order[: int(share * int(at.running.sum()))]] = True
        return Step(prediction, keep=keep)
