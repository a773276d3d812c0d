"""``infoprop``: rollouts that end when too much information is lost (Frauenknecht et al., ICLR 2025, arXiv 2501.16918)."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_mbrl.checks import number
from sb3_mbrl.contracts import Prediction, WorldModel
from sb3_mbrl.imagination.branched import BranchedRollouts, Progress, Step
from sb3_mbrl.imagination.schedule import HorizonSchedule
from sb3_mbrl.imagination.uncertainty import Fused, check_members, fuse
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec, numbers_alone
from sb3_mbrl.trees import State

PRECISION = 1e-6
"""The width of the bins in which information is counted; the authors'"""


class InformedRollouts(BranchedRollouts):
    """
    Branched rollouts whose steps are drawn from what the members agree on, and which end when they have lost too much
    information.

    A member is drawn at random, and a sample ``x`` from its Gaussian. With the fusion of all members
    (:func:`~sb3_mbrl.imagination.uncertainty.fuse`), a step is a draw of the environment's next observation given ``x``::

        s' ~ N(mu + K (x - mu), (1 - K) var)

    so that noise stays and disagreement is filtered out. What ``x`` does not tell about ``s'`` is lost, for every column::

        h = max(0, log2(2 pi e (1 - K) var) / 2 - log2(1e-6))      bits

    A rollout ends before a step at which ``h`` of any column exceeds the ``rate_quantile`` of ``h`` at real states (under the
    policy, measured at the first step of each rollout), or the sum of ``h`` so far exceeds ``horizon`` times its
    ``sum_quantile``.

    Rewards are the members' mean; the authors treat them as a column of the observation. Their thresholds are measured on real
    actions.

    :param horizon: the largest number of steps
    :param rate_quantile: the quantile that bounds the loss of a step
    :param sum_quantile: the quantile that, times ``horizon``, bounds the loss of a rollout
    :param kwargs: keyword arguments of :class:`~sb3_mbrl.imagination.BranchedRollouts`
    """

    needs_members = True

    def __init__(
        self,
        horizon: int | Sequence[int] | HorizonSchedule = 100,
        rate_quantile: float = 0.9999,
        sum_quantile: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.rate_quantile = number("rate_quantile", rate_quantile, 0.0, 1.0)
        self.sum_quantile = number("sum_quantile", sum_quantile, 0.0, 1.0)
        super().__init__(horizon, **kwargs)

    def check(self, world_model: WorldModel) -> None:
        super().check(world_model)
        numbers_alone(world_model.observation_space, "imagination='infoprop'", "'macura'")
        check_members(world_model, noise=True)

    def predict(
        self, world_model: WorldModel, state: State, action: th.Tensor, at: Progress, *, generator: th.Generator | None
    ) -> Step:
        members = world_model.members(state, action)
        fused = fuse(members)
        lost = lost_information(fused)
        if at.step == 0:
            measured = lost[at.running & lost.isfinite().all(1)]
            measured = measured if len(measured) else lost.new_zeros(1, lost.shape[1])
            at.memory["rate"] = measured.quantile(self.rate_quantile, dim=0)
            at.memory["sum"] = at.horizon * measured.quantile(self.sum_quantile, dim=0)
            at.memory["lost"] = th.zeros_like(lost)
        at.memory["lost"] = at.memory["lost"] + lost
        within = ~((lost > at.memory["rate"]) | (at.memory["lost"] > at.memory["sum"])).any(1)

        device = fused.mean.device
        source = on_device(generator, device)
        row = th.arange(len(fused.mean), device=device)
        member = th.randint(len(members.mean), (len(row),), generator=source, device=device)
        noise = th.randn(2, *fused.mean.shape, generator=source, device=device)
        drawn = members.mean[member, row] + members.variance[member, row].sqrt() * noise[0]
        told = fused.mean + fused.gain * (drawn - fused.mean)
        codec = numbers_alone(world_model.observation_space, "imagination='infoprop'", "'macura'")
        next_obs = codec.decode(told + fused.lost.sqrt() * noise[1])
        reward, terminated = world_model.with_known(
            lambda: (world_model.decode(state), ActionCodec(world_model.action_space).to_env(action), next_obs),
            members.reward.mean(0),
            members.terminated.mean(0),
        )
        return Step(Prediction(world_model.initial(next_obs), reward, terminated), keep=within, go_on=within)


def lost_information(fused: Fused) -> th.Tensor:
    """Compute the information that a step loses, in bits of every column, ``(B, D)``: its entropy in bins of width 1e-6."""
    entropy = 0.5 * (2 * math.pi * math.e * fused.lost).clamp(min=1e-30).log2()
    return (entropy - math.log2(PRECISION)).clamp(min=0.0)
