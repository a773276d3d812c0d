"""The checks of a planner's contract, on a linear system whose best action is known."""

from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MissingCapability, Plan, Planner, UnsupportedSpace
from sb3_mbrl.testing.kit import (
    Subject,
    Violation,
    check_calls,
    contract_check,
    first_difference,
    rng,
    same_values,
    untouched_rng,
)
from sb3_mbrl.testing.toy_data import Case
from sb3_mbrl.testing.toys import LinearToy
from sb3_mbrl.trees import State, batch_size, tree_index, tree_leaves, tree_map

_OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,))
_ACTIONS = (spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 3.0])), spaces.Discrete(3))  # type: ignore[arg-type]


class _Scene(NamedTuple):
    """A planner and a linear system to plan in."""

    planner: Planner
    model: LinearToy

    def plan(
        self, rows: int, carry: State | None = None, *, start: int = 0, seed: int = 0, first: bool = False, **kwargs: Any
    ) -> Plan:
        """Plan from ``rows`` states that depend on ``start``."""
        state = self.model.initial(th.randn((rows, 3), generator=rng(start)))
        is_first = th.full((rows,), first or carry is None)
        return self.planner.plan(self.model, state, carry, is_first=is_first, generator=rng(seed), **kwargs)


def _scenes(subject: Subject) -> Iterator[_Scene]:
    """Build the planner for every kind of action that it takes."""
    taken = False
    for action_space in (subject.instance.action_space,) if subject.instance is not None else _ACTIONS:
        if subject.refusal(Case("", _OBSERVATIONS, action_space)) is not None:
            continue
        try:
            planner = subject.build() if subject.instance is not None else subject.build(action_space)
            scene = _Scene(planner, LinearToy(_OBSERVATIONS, action_space, device="cpu"))
        except UnsupportedSpace:
            continue
        taken = True
        yield scene
    if not taken:
        raise Violation(
            f" takes none of the action spaces {', '.join(map(str, _ACTIONS))}",
            "if it is made for one environment, give an instance built for it (sb3-mbrl check: --env ID)",
        )


_PLAN = "model, state, carry, *, is_first, action_mask, prior, value, deterministic, generator"
"""The arguments with which a planner is called"""

_ACTION_REMEDY = "return actions as SB3's replay buffer stores them: (B, A), numbers scaled to [-1, 1], categories as integers"


def _action_fault(space: spaces.Space, action: th.Tensor, shape: tuple[int, ...]) -> str | None:
    """Explain why actions are not in the layout of SB3's replay buffer; ``None`` if they are."""
    size = int(np.prod(space.shape)) if space.shape else 1
    if not isinstance(action, th.Tensor) or tuple(action.shape) != (*shape, size):
        got = tuple(action.shape) if isinstance(action, th.Tensor) else type(action).__name__
        return f"of shape {got}, expected {(*shape, size)}"
    if isinstance(space, spaces.Box):
        if not action.is_floating_point() or not action.isfinite().all() or action.abs().max() > 1:
            return f"with values up to {float(action.float().abs().max()):.4g}, expected finite floats scaled to [-1, 1]"
    elif action.is_floating_point():
        return f"as {action.dtype}, expected integers"
    elif isinstance(space, spaces.Discrete) and not bool(((action >= space.start) & (action < space.start + space.n)).all()):
        return f"with values outside {space}"
    return None


@contract_check("planner")
def check_plan_shapes(subject: Subject) -> None:
    """Actions are ``(B, A)`` as SB3 stores them, for one environment and several; optional fields have their shapes."""
    for scene in _scenes(subject):
        check_calls(scene.planner, {"plan": _PLAN})
        for rows in (1, 5):
            plan = scene.plan(rows)
            if not isinstance(plan, Plan):
                raise Violation(
                    f".plan returned {type(plan).__name__}, expected sb3_mbrl.contracts.Plan",
                    "return Plan(action, carry=..., sequence=...)",
                )
            if fault := _action_fault(scene.model.action_space, plan.action, (rows,)):
                raise Violation(f".plan returned action {fault} (for {scene.model.action_space})", _ACTION_REMEDY)
            if any(True for _ in tree_leaves(plan.carry)) and batch_size(plan.carry) != rows:
                raise Violation(
                    f".plan returned a carry of {batch_size(plan.carry)} rows for {rows} environments",
                    "return one row of every leaf per environment",
                )
            if plan.sequence is not None:
                horizon = plan.sequence.shape[1] if plan.sequence.dim() == 3 else 0
                if fault := _action_fault(scene.model.action_space, plan.sequence, (rows, horizon)):
                    raise Violation(f".plan returned sequence {fault} (for {scene.model.action_space})", _ACTION_REMEDY)
            for name, shape in (("policy", (rows, scene.model.action_codec.dim)), ("value", (rows,))):
                value = getattr(plan, name)
                if value is not None and tuple(value.shape) != shape:
                    raise Violation(
                        f".plan returned {name} of shape {tuple(value.shape)}, expected {shape}",
                        f"return {name} in that shape, or None",
                    )


@contract_check("planner", check_plan_shapes)
def check_plan_side_effects(subject: Subject) -> None:
    """Planning changes neither the model nor the state that it starts from."""
    for scene in _scenes(subject):
        state = scene.model.initial(th.randn((3, 3), generator=rng(0)))
        before = tree_map(th.clone, {"state": state, "weights": dict(scene.model.state_dict())})
        scene.planner.plan(scene.model, state, None, is_first=th.ones(3, dtype=th.bool), generator=rng(0))
        after = {"state": state, "weights": dict(scene.model.state_dict())}
        for what, then in before.items():
            if name := first_difference(then, after[what], what):
                raise Violation(
                    f".plan changed the model or the state that it was given: {name}",
                    "work on new tensors: state = state + x, not state += x",
                )


@contract_check("planner", check_plan_side_effects)
def check_plan_determinism(subject: Subject) -> None:
    """The same generator gives the same plan to the last bit; no global random stream moves."""
    for scene in _scenes(subject):
        for deterministic in (False, True):
            with untouched_rng(".plan"):
                plans = [scene.plan(3, seed=1, deterministic=deterministic) for _ in range(2)]
            if not same_values(plans[0].action, plans[1].action):
                raise Violation(
                    f".plan(deterministic={deterministic}) gives different actions for generators of the same seed",
                    "draw from the generator alone, and keep nothing between calls but the carry",
                )
        once, again = (scene.plan(3, seed=seed, deterministic=True) for seed in (1, 2))
        if not same_values(once.action, again.action):
            raise Violation(
                ".plan(deterministic=True) depends on the generator",
                "draw from a new generator with a fixed seed at every call: th.Generator().manual_seed(0)",
            )
        generator, state = rng(1), scene.model.initial(th.zeros(3, 3))
        before = generator.get_state()
        first = th.ones(3, dtype=th.bool)
        scene.planner.plan(scene.model, state, None, is_first=first, deterministic=True, generator=generator)
        if not th.equal(generator.get_state(), before):
            raise Violation(
                ".plan(deterministic=True) advanced the generator that it was given",
                "draw from a new generator with a fixed seed at every call: th.Generator().manual_seed(0)",
            )


@contract_check("planner", check_plan_determinism)
def check_plan_prior(subject: Subject) -> None:
    """A prior is called as ``prior(state, generator)``, with the generator of the plan."""
    for scene in _scenes(subject):
        draws, generators = _Actions(scene.model.action_space), list[th.Generator | None]()

        def prior(state: State, generator: th.Generator | None, draws: Any = draws, seen: Any = generators) -> th.Tensor:
            seen.append(generator)
            return draws(batch_size(state), len(seen))

        scene.plan(3, prior=prior)
        if any(generator is None for generator in generators):
            raise Violation(".plan calls prior without its generator", "call it as prior(state, generator)")


@contract_check("planner", check_plan_determinism)
def check_plan_carry(subject: Subject) -> None:
    """The carry belongs to the caller: it is not changed, and the planner remembers nothing else between calls."""
    for scene in _scenes(subject):
        carry = scene.plan(3).carry
        given = tree_map(th.clone, carry)
        before = scene.plan(3, carry, start=1, seed=1)
        if name := first_difference(given, carry, "carry"):
            raise Violation(f".plan changed the {name} that it was given", "return a new carry, and leave this one alone")
        scene.plan(3, scene.plan(3, start=2).carry, start=3, seed=2)
        if not same_values(scene.plan(3, carry, start=1, seed=1).action, before.action):
            raise Violation(
                ".plan remembers another call", "put everything that it wants to keep into the carry, nothing on the planner"
            )
        scene.plan(2, tree_index(carry, slice(0, 2)), start=1)


@contract_check("planner", check_plan_carry)
def check_plan_is_first(subject: Subject) -> None:
    """Rows with ``is_first`` plan as if there were no carry."""
    for scene in _scenes(subject):
        carry = scene.plan(3).carry
        if not same_values(scene.plan(3, carry, start=1, first=True).action, scene.plan(3, None, start=1).action):
            raise Violation(
                ".plan uses the carry of the last episode in rows where is_first is true",
                "choose row by row: th.where(is_first[:, None], fresh, carried)",
            )


@contract_check("planner", check_plan_shapes)
def check_plan_action_mask(subject: Subject) -> None:
    """Forbidden actions are never chosen."""
    checked = False
    for scene in _scenes(subject):
        if not isinstance(scene.model.action_space, spaces.Discrete):
            continue
        checked = True
        allowed = th.arange(6) % 3
        mask = th.nn.functional.one_hot(allowed, 3).bool()
        try:
            action = scene.plan(6, action_mask=mask).action
        except MissingCapability as error:
            raise SkipTest(str(error)) from error
        if not th.equal(action.flatten().cpu(), allowed):
            raise Violation(
                f".plan chose the actions {action.flatten().tolist()} where only {allowed.tolist()} were allowed",
                "honour action_mask, or refuse it with MissingCapability",
            )
    if not checked:
        raise SkipTest(f"{subject.name} takes no Discrete actions")


@contract_check("planner", check_plan_is_first)
def check_plan_improves(subject: Subject) -> None:
    """On the linear system, planning at every step closes at least half of the gap between random and best actions."""
    rows, steps = 8, 6
    for scene in _scenes(subject):
        model, start = scene.model, th.zeros(rows, 3)
        draws = _Actions(model.action_space)
        random_return = th.stack(
            [_play(model, start, [draws(rows, seed * steps + t) for t in range(steps)]) for seed in range(50)]
        ).mean()
        state, carry, total = start, None, th.zeros(rows)
        for t in range(steps):
            plan = scene.planner.plan(
                model, state, carry, is_first=th.full((rows,), t == 0), deterministic=True, generator=rng(t)
            )
            prediction = model.step(state, plan.action)
            state, carry, total = prediction.state, plan.carry, total + prediction.reward
        best = float(model.best_return(start, steps).mean())
        if not float(total.mean()) > 0.5 * (float(random_return) + best):
            raise Violation(
                f".plan reaches a return of {float(total.mean()):.3g} on a linear system with {model.action_space}, "
                f"where random actions reach {float(random_return):.3g} and the best ones {best:.3g}",
                "look at the sign of the score, at the axis of the maximum, and that the first action of the best sequence "
                "is returned",
            )


class _Actions:
    """A sampler of random actions as SB3's replay buffer stores them."""

    def __init__(self, space: spaces.Space) -> None:
        self.space = space

    def __call__(self, rows: int, seed: int) -> th.Tensor:
        if isinstance(self.space, spaces.Discrete):
            return th.randint(int(self.space.n), (rows, 1), generator=rng(seed)) + int(self.space.start)
        return 2 * th.rand((rows, int(np.prod(self.space.shape or ()))), generator=rng(seed)) - 1


def _play(model: LinearToy, state: th.Tensor, actions: list[th.Tensor]) -> th.Tensor:
    """Return the return of a sequence of actions, ``(B,)``."""
    total = th.zeros(len(state))
    for action in actions:
        prediction = model.step(state, action)
        state, total = prediction.state, total + prediction.reward
    return total


PLANNER_CHECKS = (
    check_plan_shapes,
    check_plan_side_effects,
    check_plan_determinism,
    check_plan_prior,
    check_plan_carry,
    check_plan_is_first,
    check_plan_action_mask,
    check_plan_improves,
)
