"""A sound planner, and variants of it that each break one thing, with the words that their authors read."""

import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Plan, Planner, UnsupportedSpace


class Shooting(Planner):
    """A planner by random shooting, whose last plan is one of the candidates."""

    horizon, candidates = 4, 64
    spoil_carry = remember = forget_nothing = ignore_mask = out_of_bounds = False
    ignore_deterministic = silent_prior = False

    def __init__(self, action_space):
        if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise UnsupportedSpace("Shooting takes Box and Discrete")
        super().__init__(action_space)

    def _draw(self, rows, action_mask, generator):
        shape = (rows * self.candidates, self.horizon)
        if isinstance(self.action_space, spaces.Box):
            return 2 * th.rand((*shape, *self.action_space.shape), generator=generator) - 1
        weights = th.ones(rows, int(self.action_space.n)) if action_mask is None or self.ignore_mask else action_mask.float()
        draws = th.multinomial(weights, self.candidates * self.horizon, replacement=True, generator=generator)
        return draws.view(*shape, 1) + int(self.action_space.start)

    def plan(
        self, model, state, carry, *, is_first, action_mask=None, prior=None, value=None, deterministic=False, generator=None
    ):
        rows = len(is_first)
        if deterministic and not self.ignore_deterministic:
            generator = th.Generator().manual_seed(0)
        if prior is not None:
            prior(state, None if self.silent_prior else generator)
        sequences = self._draw(rows, action_mask, generator)
        if carry is not None and action_mask is None:
            keep = th.zeros_like(is_first) if self.forget_nothing else is_first
            view = sequences.view(rows, self.candidates, self.horizon, -1)
            view[~keep, 0] = carry[~keep]
            if self.spoil_carry:
                carry += 1
        batch, total = state.repeat_interleave(self.candidates, dim=0), 0.0
        for t in range(self.horizon):
            prediction = model.step(batch, sequences[:, t], deterministic=True)
            batch, total = prediction.state, total + prediction.reward
        total = total + (getattr(self, "calls", 0) if self.remember else 0)
        best = total.view(rows, -1).argmax(1)
        chosen = sequences.view(rows, self.candidates, self.horizon, -1)[th.arange(rows), best]
        action = chosen[:, 0] * (2 if self.out_of_bounds else 1)
        return Plan(action, chosen, chosen)


def variant(base=Shooting, **attributes):
    return type("Variant", (base,), attributes)


class Rowless(Shooting):
    def plan(self, *args, **kwargs):
        plan = super().plan(*args, **kwargs)
        return plan._replace(action=plan.action[0])


class GlobalNoise(Shooting):
    def plan(self, *args, generator=None, **kwargs):
        return super().plan(*args, generator=None, **kwargs)


class Advancing(Shooting):
    """A planner that draws from its generator for deterministic plans too."""

    def plan(self, *args, generator=None, **kwargs):
        th.rand(1, generator=generator)
        return super().plan(*args, generator=generator, **kwargs)


class Remembering(Shooting):
    last = None

    def plan(self, model, state, carry, **kwargs):
        plan = super().plan(model, state, carry, **kwargs)
        action = plan.action if self.last is None else self.last[: len(plan.action)].flip(0)
        self.last = plan.action
        return plan._replace(action=action) if len(action) == len(plan.action) else plan


class Pushing(Shooting):
    def plan(self, model, state, carry, **kwargs):
        state += 1.0
        return super().plan(model, state, carry, **kwargs)


class Random(Shooting):
    def plan(self, model, state, carry, *, is_first, generator=None, action_mask=None, deterministic=False, **kwargs):
        generator = th.Generator().manual_seed(0) if deterministic else generator
        sequence = self._draw(len(is_first), action_mask, generator).view(len(is_first), self.candidates, self.horizon, -1)[
            :, 0
        ]
        return Plan(sequence[:, 0], sequence, sequence)


class UsesOldPlan(Shooting):
    """A planner that repeats its last plan in a new episode."""

    def plan(self, model, state, carry, **kwargs):
        plan = super().plan(model, state, carry, **kwargs)
        return plan if carry is None else plan._replace(action=carry[:, 1])


BROKEN_PLANNERS = [
    ("check_plan_shapes", variant(out_of_bounds=True), r"action with values up to .* scaled to \[-1, 1\]"),
    ("check_plan_shapes", Rowless, r"action of shape \(2,\), expected \(1, 2\)"),
    ("check_plan_determinism", GlobalNoise, r"\.plan drew from torch's global random stream"),
    ("check_plan_determinism", variant(ignore_deterministic=True), r"depends on the generator"),
    ("check_plan_determinism", Advancing, r"advanced the generator that it was given"),
    ("check_plan_prior", variant(silent_prior=True), r"calls prior without its generator"),
    ("check_plan_carry", variant(spoil_carry=True), r"changed the carry that it was given"),
    ("check_plan_carry", Remembering, r"remembers another call"),
    ("check_plan_is_first", UsesOldPlan, r"uses the carry of the last episode"),
    ("check_plan_side_effects", Pushing, r"changed the model or the state"),
    (
        "check_plan_action_mask",
        variant(ignore_mask=True),
        r"chose the actions .* where only \[0, 1, 2, 0, 1, 2\] were allowed",
    ),
    ("check_plan_improves", Random, r"where random actions reach"),
]
