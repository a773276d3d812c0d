"""Figures of a world model's quality on real data that it was not trained on, against predictors that know nothing.

Errors of observations are *normalised*: the root of the mean over columns of (squared error / variance of that column in the
data), so that 1 is what predicting the mean gets. Columns that do not vary in the data are left out.

**The verdict** is ``vs_trivial``: for every column the model's squared error relative to that of the better of two trivial
predictors (copy the state; predict the mean), at most 2, averaged over columns; imagination runs where that is below 1 by more
than chance. Why so:

* per column, since a sum is decided by whichever columns have the largest scale or are the hardest;
* capped at 2, so that one impossible column among several does not veto a model, while a model that is broken everywhere
  gets 2. Columns that nothing can predict are at 1 for a model that has learned to predict their mean there: whether it
  learned anything is then decided by the others;
* of a model that does not decode, the columns are the reward and the termination, as far as they are learned;
* an average of ratios, not of their logarithms: a few columns predicted perfectly must not outweigh many that are wrong;
* the error is that of the model's *mean*. For numbers a deterministic step is the mean; for categories and bits it is the
  mode, and a mode loses against the mean wherever the world is random, even where the model knows the true probabilities.
  There, and for all columns of models that filter a context, whose latent states are drawn, the mean is estimated from
  samples, without bias.
"""

from typing import Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import Obs, Prediction, Sequences, Transitions, WorldModel
from sb3_mbrl.spaces import Kind, SpaceCodec, unsupported_by_vectors
from sb3_mbrl.trees import State, finite_rows, tree_index, tree_map

_MAX_RATIO = 2.0
_CONSTANT = 1e-12
"""What varies by less than this, relative to its mean square, does not vary"""
_SAMPLES = 8


class ModelQualityWarning(UserWarning):
    """The world model predicts no better than a trivial predictor."""


class Columns(Protocol):
    """Observations as rows of numbers: a :class:`~sb3_mbrl.spaces.SpaceCodec`, or what stands in for it."""

    def encode(self, obs: Obs) -> th.Tensor:
        """``(B, D)``."""

    def mask(self, kind: Kind) -> th.Tensor:
        """``(D,)`` booleans: the columns of one kind."""


class _Numbers:
    """What no codec takes (images), flattened; bytes become 0 to 1."""

    def __init__(self, space: spaces.Space) -> None:
        self.dim = int(np.prod(get_obs_shape(space)))  # type: ignore[arg-type]

    def encode(self, obs: Obs) -> th.Tensor:
        assert isinstance(obs, th.Tensor)
        return obs.flatten(1).float() / (255.0 if obs.dtype == th.uint8 else 1.0)

    def mask(self, kind: Kind) -> th.Tensor:
        return th.full((self.dim,), kind == "continuous")


class _Keys:
    """The columns of all keys of a ``Dict``, side by side."""

    def __init__(self, children: dict[str, Columns]) -> None:
        self.children = children

    def encode(self, obs: Obs) -> th.Tensor:
        assert isinstance(obs, dict)
        return th.cat([child.encode(obs[key]) for key, child in self.children.items()], 1)

    def mask(self, kind: Kind) -> th.Tensor:
        return th.cat([child.mask(kind) for child in self.children.values()])


def columns_of(space: spaces.Space) -> Columns:
    """What a model's predictions are judged by in an observation space."""
    if unsupported_by_vectors(space) is None:
        return SpaceCodec(space)
    if isinstance(space, spaces.Dict):
        return _Keys({key: columns_of(child) for key, child in space.spaces.items()})
    return _Numbers(space)


def _squared_errors(prediction: th.Tensor, truth: th.Tensor) -> th.Tensor:
    """``(D,)``; a prediction that is not finite counts as infinitely wrong."""
    return th.nan_to_num((prediction - truth).square().mean(0), nan=float("inf"), posinf=float("inf"))


def _seen(model: WorldModel, codec: Columns, state: State) -> th.Tensor:
    """``(B, D)``: encoded observations; NaN where the state is not finite, also where it would decode to some category."""
    obs = codec.encode(model.decode(state)).double()
    return obs.masked_fill(~finite_rows(state)[:, None], float("nan"))


def _varies(variance: th.Tensor, truth: th.Tensor) -> th.Tensor:
    return variance > _CONSTANT * truth.square().mean(0).clamp(min=_CONSTANT)


@th.no_grad()
def one_step_quality(
    model: WorldModel, codec: Columns, rows: Transitions | Sequences, generator: th.Generator | None = None
) -> dict[str, float]:
    """
    Judge one-step predictions on real rows, held out where there are any such.

    * ``error``: normalised error of the next observation; ``copy_error`` and ``mean_error``: of the copied state and of the
      mean next observation
    * ``vs_trivial``: the verdict (see the top of this file)
    * ``reward_error``: root of the mean squared error of the reward, relative to its deviation; where the reward is constant,
      relative to its size (absolute where it is always 0)
    * ``term_brier``: mean squared error of the termination probability; ``term_recall``: mean probability on true
      terminations, where there are any

    :param model: fitted
    :param codec: of the observation space (:func:`columns_of`)
    :param rows: transitions, at least one; of models with a context windows of so many steps, whose last step is judged
    :param generator: of the samples that are needed for a mean; ``None``: always the same ones
    """
    start, rows = _starts(model, tree_map(lambda leaf: leaf.to(model.device), rows))
    prediction = model.step(start, rows.action, deterministic=True)
    figures = {**_observation_figures(model, codec, start, rows, prediction, generator), **_outcome_figures(prediction, rows)}
    if not model.decodes:
        figures["vs_trivial"] = _outcomes_vs_trivial(model, prediction, rows)
    return figures


def _observation_figures(
    model: WorldModel,
    codec: Columns,
    start: State,
    rows: Transitions,
    prediction: Prediction,
    generator: th.Generator | None,
) -> dict[str, float]:
    """``error``, ``copy_error``, ``mean_error`` and ``vs_trivial``; nothing of a model that does not decode."""
    if not model.decodes:
        return {}
    obs, truth = codec.encode(rows.obs).double(), codec.encode(rows.next_obs).double()
    errors = _squared_errors(_seen(model, codec, prediction.state), truth)
    labels = ~codec.mask("continuous").to(errors.device) | (model.context > 1)
    if bool(labels.any()):
        generator = generator or th.Generator().manual_seed(0)
        steps = (model.step(start, rows.action, generator=generator) for _ in range(_SAMPLES))
        samples = th.stack([_seen(model, codec, step.state) for step in steps])
        # The mean of n samples is off by its own variance / n, which is taken out again.
        noise = samples.var(0, correction=1).mean(0).nan_to_num(0.0) / _SAMPLES
        errors = th.where(labels, _squared_errors(samples.mean(0), truth) - noise, errors).clamp(min=0.0)
    copy, variance = _squared_errors(obs, truth), truth.var(0, correction=0)
    # Of a single row the mean is no prediction.
    trivial = th.minimum(copy, variance) if len(truth) > 1 else copy
    judged = _varies(trivial, truth) | ~errors.isfinite()
    ratio = (errors / trivial)[judged].clamp(max=_MAX_RATIO)
    return {
        "error": _normalised(errors, variance, truth),
        "copy_error": _normalised(copy, variance, truth),
        "mean_error": _normalised(variance, variance, truth),
        # Nothing varies: any finite prediction will do.
        "vs_trivial": float(ratio.mean()) if len(ratio) else 0.0,
    }


def _outcome_figures(prediction: Prediction, rows: Transitions) -> dict[str, float]:
    """``reward_error``, ``term_brier`` and, where some episode has terminated, ``term_recall``."""
    figures = {
        "reward_error": _reward_error(prediction.reward.double(), rows.reward.double()),
        "term_brier": float((prediction.terminated - rows.terminated).square().mean()),
    }
    if bool(rows.terminated.any()):
        figures["term_recall"] = float(prediction.terminated[rows.terminated > 0].mean())
    return figures


def _outcomes(prediction: Prediction) -> th.Tensor:
    """``(B, 2)``: rewards and terminations, by which a model that does not decode is judged."""
    return th.stack([prediction.reward, prediction.terminated], 1).double()


def _outcomes_vs_trivial(model: WorldModel, prediction: Prediction, rows: Transitions) -> float:
    """The verdict on a model that does not decode: as that on observations, of the rewards and terminations it has learned."""
    truth = th.stack([rows.reward, rows.terminated], 1).double()
    errors, trivial = _squared_errors(_outcomes(prediction), truth), truth.var(0, correction=0)
    learned = th.tensor([model.reward_fn is None, model.termination_fn is None], device=errors.device)
    judged = learned & (_varies(trivial, truth) | ~errors.isfinite())
    ratio = (errors / trivial)[judged].clamp(max=_MAX_RATIO)
    return float(ratio.mean()) if len(ratio) else 0.0


def _starts(model: WorldModel, rows: Transitions | Sequences) -> tuple[State, Transitions]:
    """The states before the steps that are judged, and these."""
    if isinstance(rows, Transitions):
        return model.initial(rows.obs), rows
    last = tree_map(lambda leaf: leaf[:, -1], rows)
    judged = Transitions(last.obs, last.action, last.next_obs, last.reward, last.terminated)
    return model.filter(rows.obs, rows.action, rows.is_first), judged


def _reward_error(predicted: th.Tensor, reward: th.Tensor) -> float:
    variance = reward.var(correction=0)
    if not bool(_varies(variance, reward[:, None]).any()):
        variance = reward.square().mean()
    scale = variance.sqrt() if bool(variance > 0) else th.ones_like(variance)
    return float(_squared_errors(predicted, reward).sqrt() / scale)


def _normalised(errors: th.Tensor, variance: th.Tensor, truth: th.Tensor) -> float:
    varies = _varies(variance, truth)
    return float((errors[varies] / variance[varies]).mean().sqrt()) if bool(varies.any()) else 0.0


@th.no_grad()
def k_step_error(
    model: WorldModel, codec: Columns, windows: Sequences, variance: th.Tensor | None = None
) -> tuple[float, float]:
    """
    Open-loop error after the last step of the windows, under the actions that were really taken.

    :param model: fitted; with a context of ``c`` steps the first ``c`` columns are filtered and the rest predicted
    :param codec: of the observation space
    :param windows: ``(N, L)`` within one episode each, ``L >= c``
    :param variance: ``(D,)``, of encoded observations in all data; by default that of where the windows end (which is tiny
        once a policy holds a state)
    :return: the normalised error of the model (its mean), and that of copying the observation it started from; for a model
        that does not decode the error of the last reward and termination, and 1
    """
    windows = tree_map(lambda leaf: leaf.to(model.device), windows)
    context = model.context
    past = tree_index(windows, (slice(None), slice(0, context)))  # type: ignore[arg-type]
    state = model.filter(past.obs, past.action, past.is_first)
    for t in range(context - 1, windows.reward.shape[1]):
        prediction = model.step(state, windows.action[:, t], deterministic=True)
        state = prediction.state
    if not model.decodes:
        truth = th.stack([windows.reward[:, -1], windows.terminated[:, -1]], 1).double()
        spread = truth.var(0, correction=0)
        # There is no observation to be copied. Predicting the mean gets 1.
        return _normalised(_squared_errors(_outcomes(prediction), truth), spread, truth), 1.0
    truth = codec.encode(tree_map(lambda leaf: leaf[:, -1], windows.next_obs)).double()
    start = codec.encode(tree_map(lambda leaf: leaf[:, context - 1], windows.obs)).double()
    variance = truth.var(0, correction=0) if variance is None else variance.double()
    errors = _squared_errors(_seen(model, codec, state), truth)
    return _normalised(errors, variance, truth), _normalised(_squared_errors(start, truth), variance, truth)
