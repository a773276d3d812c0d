"""The checks of an imagination's contract, on linear systems that end, explode, or do neither."""

from typing import Any
from unittest import SkipTest

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Imagined, Obs, Prediction, RolloutImagination
from sb3_mbrl.imagination.starts import check_choice
from sb3_mbrl.testing.kit import Subject, Violation, check_calls, contract_check, rng, same_values, untouched_rng
from sb3_mbrl.testing.toy_data import ToyData
from sb3_mbrl.testing.toys import EnsembleToy
from sb3_mbrl.trees import State, finite_rows, tree_items, tree_leaves, tree_map

_SPACES = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1.0, 1.0, (2,))
_ROWS, _HORIZON = 16, 6


class _Exploding(EnsembleToy):
    """A linear system whose predictions are NaN once the first value has exceeded 1."""

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        prediction = super().step(state, action, deterministic=deterministic, generator=generator)
        return prediction._replace(state=th.where(state[:, :1] > 1, float("nan"), prediction.state))


def _ending(obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
    assert isinstance(next_obs, th.Tensor)
    return next_obs[:, 0] > 1


def _built(subject: Subject) -> RolloutImagination:
    """
    Build the imagination.

    :raises SkipTest: when it is of another kind than these checks are about
    """
    imagination = subject.build()
    if not isinstance(imagination, RolloutImagination):
        raise SkipTest(f"{subject.name} stores no rollouts (it is no RolloutImagination)")
    return imagination


def _imagine(subject: Subject, model: EnsembleToy, *, horizon: int = _HORIZON, seed: int = 0) -> Imagined:
    """Roll out the best action, which makes every value grow."""
    imagination = _built(subject)
    starts = model.initial(th.rand((_ROWS, 3), generator=rng(0)) - 0.5)

    def act(seen: Any) -> th.Tensor:
        return model.best_action(len(next(tree_leaves(seen))))

    return imagination.imagine(model, starts, act, horizon, generator=rng(seed))


@contract_check("imagination")
def check_imagination_settings(subject: Subject) -> None:
    """``freq``, ``starts_per_step`` and ``max_age`` are positive, and the horizon is always an integer of at least 1."""
    imagination = _built(subject)
    check_calls(imagination, {"horizon": "num_timesteps", "imagine": "world_model, starts, act, horizon, *, generator"})
    check_calls(imagination, {"choose_starts": "data, n, *, generator"})
    for name in ("freq", "starts_per_step", "max_age"):
        value = getattr(imagination, name, None)
        if not isinstance(value, (int, float)) or not value > 0:
            raise Violation(f".{name} is {value!r}, expected a positive number", f"set {name} in the constructor")
    for num_timesteps in (0, 1, 10_000, 10_000_000):
        horizon = imagination.horizon(num_timesteps)
        if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
            raise Violation(
                f".horizon({num_timesteps}) returned {horizon!r}, expected an integer of at least 1",
                "round it: max(1, int(...))",
            )


@contract_check("imagination", check_imagination_settings)
def check_imagination_shapes(subject: Subject) -> None:
    """All fields are ``(T, B, ...)``: no rows are removed where rollouts end."""
    for horizon in (1, _HORIZON):
        imagined = _imagine(subject, EnsembleToy(*_SPACES, termination_fn=_ending, noise=0.1, device="cpu"), horizon=horizon)
        if not isinstance(imagined, Imagined):
            raise Violation(
                f".imagine returned {type(imagined).__name__}, expected sb3_mbrl.contracts.Imagined",
                "return Imagined(obs, action, next_obs, reward, terminated, discount, valid)",
            )
        lead = (horizon, _ROWS)
        remedy = "stack the steps on the first axis and keep all rows; mask those that are over with valid"
        for name in ("reward", "terminated", "valid", "discount"):
            value = getattr(imagined, name)
            if value is None and name == "discount":
                continue
            if tuple(value.shape) != lead:
                raise Violation(f".imagine returned {name} of shape {tuple(value.shape)}, expected {lead}", remedy)
        for name in ("obs", "action", "next_obs"):
            for place, leaf in tree_items(getattr(imagined, name), name):
                if tuple(leaf.shape[:2]) != lead:
                    raise Violation(
                        f".imagine returned {place} of shape {tuple(leaf.shape)}, expected {lead} and more", remedy
                    )
        if imagined.valid.dtype != th.bool:
            raise Violation(f".imagine returned valid as {imagined.valid.dtype}, expected booleans", "return valid.bool()")
        if not bool(((imagined.terminated == 0) | (imagined.terminated == 1)).all()):
            raise Violation(
                ".imagine returned terminated that is neither 0 nor 1",
                "draw it from the model's probability: (th.rand(..., generator=generator) < prediction.terminated).float()",
            )
        if not all(isinstance(value, (int, float)) for value in imagined.info.values()):
            raise Violation(f".imagine returned info {dict(imagined.info)}, expected plain numbers", "convert them by float()")


@contract_check("imagination", check_imagination_shapes)
def check_imagination_ends(subject: Subject) -> None:
    """The terminating step of a rollout is valid, the rows after it are not."""
    imagined = _imagine(subject, EnsembleToy(*_SPACES, termination_fn=_ending, device="cpu"))
    over = (imagined.terminated * imagined.valid).cumsum(0) > 0
    if not bool(over.any()):
        raise Violation(
            ".imagine returned no valid terminated row for a model in which every rollout ends",
            "keep the terminating step valid: it teaches the learner that there is nothing behind it",
        )
    if bool((imagined.valid[1:] & over[:-1]).any()):
        raise Violation(
            ".imagine returned valid rows after their rollout had terminated",
            "mask all steps behind the terminating one: running = running & ~terminated",
        )


@contract_check("imagination", check_imagination_ends)
def check_imagination_horizon_is_no_termination(subject: Subject) -> None:
    """Rollouts that reach the horizon were cut off, not terminated."""
    imagined = _imagine(subject, EnsembleToy(*_SPACES, device="cpu"))
    if bool(imagined.terminated[imagined.valid].any()):
        raise Violation(
            ".imagine returned terminated = 1 although the model never terminates: the horizon is a truncation",
            "set terminated from the model's prediction alone",
        )


@contract_check("imagination", check_imagination_shapes)
def check_imagination_continuity(subject: Subject) -> None:
    """Every step of a rollout begins with the observation that the step before has predicted."""
    model = EnsembleToy(*_SPACES, device="cpu")
    imagined = _imagine(subject, model)
    both = imagined.valid[1:] & imagined.valid[:-1]
    pairs = zip(tree_items(imagined.next_obs, "obs"), tree_items(imagined.obs, "obs"), strict=True)
    for (name, before), (_, after) in pairs:
        if not th.equal(before[:-1][both], after[1:][both]):
            raise Violation(
                f".imagine returned {name} that is not the next_obs of the step before",
                "begin every step with the observation in which the last one ended",
            )
    if not bool(imagined.valid[0].any()):
        raise Violation(".imagine returned no valid row for a model that never fails", "make valid true where all is finite")


@contract_check("imagination", check_imagination_ends)
def check_imagination_nonfinite(subject: Subject) -> None:
    """Rows in which the model returns NaN are not valid, and neither are the rows after them."""
    imagined = _imagine(subject, _Exploding(*_SPACES, device="cpu"))
    rows = tree_map(lambda leaf: leaf.flatten(0, 1), (imagined.obs, imagined.action, imagined.next_obs, imagined.reward))
    valid = imagined.valid.flatten()
    if bool((valid & ~finite_rows(rows)).any()):
        raise Violation(
            ".imagine returned valid rows that are not finite", "mask them: valid = running & finite_rows(prediction)"
        )
    if bool(imagined.valid[-1].any()):
        raise Violation(
            ".imagine returned valid rows after a prediction was not finite", "end these rollouts: running = running & valid"
        )


@contract_check("imagination", check_imagination_shapes)
def check_imagination_determinism(subject: Subject) -> None:
    """The same generator gives the same rollouts to the last bit; no global random stream moves; starts are left alone."""
    model = EnsembleToy(*_SPACES, noise=0.1, termination_fn=_ending, device="cpu")
    with untouched_rng(".imagine"):
        rollouts = [_imagine(subject, model, seed=1) for _ in range(2)]
    fields = [tuple(rollout)[:-1] for rollout in rollouts]
    if not same_values(fields[0], fields[1]):
        raise Violation(".imagine gives different rollouts for generators of the same seed", "draw from the generator alone")
    starts = model.initial(th.zeros(_ROWS, 3))
    _built(subject).imagine(model, starts, lambda seen: model.best_action(_ROWS), 3, generator=rng(0))
    if not th.equal(starts, th.zeros(_ROWS, 3)):
        raise Violation(
            ".imagine changed the start states that it was given", "work on new tensors: state = state + x, not state += x"
        )


@contract_check("imagination")
def check_imagination_starts(subject: Subject) -> None:
    """``choose_starts`` returns as many rows of the data as it was asked for, or ``None``, and the generator decides which."""
    data, n = ToyData(*_SPACES, steps=40), 64
    with untouched_rng(".choose_starts"):
        choices = [_built(subject).choose_starts(data, n, generator=rng(1)) for _ in range(2)]
    if choices[0] is None:
        return
    try:
        check_choice(choices[0], n, data, ".choose_starts")
    except ValueError as error:
        # The error comes from the check of the choice, not from the imagination: no cause.
        raise Violation(str(error), "return n of data.row_ids(), as integers, or None for uniform draws") from None
    if not same_values(choices[0], choices[1]):
        raise Violation(".choose_starts gives different rows for generators of the same seed", "draw from the generator alone")


IMAGINATION_CHECKS = (
    check_imagination_settings,
    check_imagination_shapes,
    check_imagination_ends,
    check_imagination_horizon_is_no_termination,
    check_imagination_continuity,
    check_imagination_nonfinite,
    check_imagination_determinism,
    check_imagination_starts,
)
