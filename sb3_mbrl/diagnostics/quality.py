"""Metrics of a world model on real data that it was not trained on, compared with trivial predictors.

Errors of observations are *normalised*: the root of the mean over columns of (squared error / variance of that column in the
data), so that predicting the mean has an error of 1. Columns that do not vary in the data are left out.

**The verdict** is ``vs_trivial``: for every column the model's squared error relative to that of the better of two trivial
predictors (copy the state; predict the mean), at most 2, averaged over columns::

    vs_trivial = mean_j min(2, E_j / min(C_j, V_j))

with the mean squared error of the model ``E_j`` and of copying ``C_j``, and the variance ``V_j``. Imagination runs if it is
below 1 by more than chance. The reasons:

* Ratios are per column, because a sum is dominated by the columns with the largest scale or by the hardest ones.
* They are capped at 2, so that one impossible column among several does not veto a model, while a model that is broken
  everywhere gets 2. In columns that nothing can predict, a model that has learned to predict the mean has a ratio of 1:
  whether it learned anything is then decided by the other columns.
* For a model that does not decode, the columns are the reward and the termination, as far as they are learned.
* Ratios are averaged, not their logarithms: a few columns predicted perfectly must not outweigh many that are wrong.
* The error is that of the model's *mean*. For continuous columns a deterministic step is the mean; for categories and bits it
  is the mode, and a mode loses against the mean wherever the world is random, even if the model knows the true probabilities.
  There, and for all columns of models that filter a context, whose latent states are drawn, the mean is estimated from
  samples, without bias.
"""

from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import Obs, Prediction, Sequences, Transitions, WorldModel
from sb3_mbrl.spaces import Kind, SpaceCodec, unsupported_by_vectors
from sb3_mbrl.trees import State, finite_rows, tree_index, tree_map

_MAX_RATIO = 2.0
_CONSTANT = 1e-12
"""The largest variance, relative to the mean square, of a column that counts as constant"""
_SAMPLES = 8
"""The number of samples from which a mean is estimated"""


class ModelQualityWarning(UserWarning):
    """The warning that a world model predicts no better than a trivial predictor."""


class Columns(Protocol):
    """An encoder of observations as vectors: a :class:`~sb3_mbrl.spaces.SpaceCodec`, or one for the spaces that it lacks."""

    def encode(self, obs: Obs) -> th.Tensor:
        """Encode observations, ``(B, D)``."""

    def mask(self, kind: Kind) -> th.Tensor:
        """Return which columns are of one kind, ``(D,)`` booleans."""


class _FlatColumns:
    """The flattened columns of spaces that no codec takes (images); bytes are scaled to 0 to 1."""

    def __init__(self, space: spaces.Space) -> None:
        shape: Any = get_obs_shape(space)
        self.dim = int(np.prod(shape))

    def encode(self, obs: Obs) -> th.Tensor:
        assert isinstance(obs, th.Tensor)
        return obs.flatten(1).float() / (255.0 if obs.dtype == th.uint8 else 1.0)

    def mask(self, kind: Kind) -> th.Tensor:
        return th.full((self.dim,), kind == "continuous")


class _DictColumns:
    """The columns of all keys of a ``Dict``, side by side."""

    def __init__(self, children: dict[str, Columns]) -> None:
        self.children = children

    def encode(self, obs: Obs) -> th.Tensor:
        assert isinstance(obs, dict)
        return th.cat([child.encode(obs[key]) for key, child in self.children.items()], 1)

    def mask(self, kind: Kind) -> th.Tensor:
        return th.cat([child.mask(kind) for child in self.children.values()])


def columns_of(space: spaces.Space) -> Columns:
    """Choose the columns by which predictions are judged in an observation space."""
    if unsupported_by_vectors(space) is None:
        return SpaceCodec(space)
    if isinstance(space, spaces.Dict):
        return _DictColumns({key: columns_of(child) for key, child in space.spaces.items()})
    return _FlatColumns(space)


def _squared_errors(prediction: th.Tensor, truth: th.Tensor) -> th.Tensor:
    """Compute mean squared errors, ``(D,)``. A prediction that is not finite has an infinite error."""
    return th.nan_to_num((prediction - truth).square().mean(0), nan=float("inf"), posinf=float("inf"))


def _decoded(model: WorldModel, codec: Columns, state: State) -> th.Tensor:
    """
    Decode states to encoded observations, ``(B, D)``. Rows whose state is not finite are NaN, even if they would decode to
    a category.
    """
    obs = codec.encode(model.decode(state)).double()
    return obs.masked_fill(~finite_rows(state)[:, None], float("nan"))


def _varies(variance: th.Tensor, truth: th.Tensor) -> th.Tensor:
    return variance > _CONSTANT * truth.square().mean(0).clamp(min=_CONSTANT)


@th.no_grad()
def one_step_quality(
    model: WorldModel, codec: Columns, rows: Transitions | Sequences, generator: th.Generator | None = None
) -> dict[str, float]:
    """
    Judge one-step predictions on real rows, which should be held out from training. The metrics are:

    * ``error``: the normalised error of the next observation; ``copy_error`` and ``mean_error``: those of copying the present
      observation and of predicting the mean next one
    * ``vs_trivial``: the verdict (see the top of this file)
    * ``reward_error``: the root mean squared error of the reward, relative to its standard deviation; for a constant reward,
      relative to its size (absolute if it is always 0)
    * ``term_brier``: the mean squared error of the termination probability; ``term_recall``: the mean probability on true
      terminations, if there are any

    :param model: a fitted world model
    :param codec: the columns of the observation space (:func:`columns_of`)
    :param rows: at least one transition; for models with a context, windows of that length, whose last step is judged
    :param generator: the source of randomness for sampled means (``None``: a fixed seed)
    """
    start, rows = _starts(model, tree_map(lambda leaf: leaf.to(model.device), rows))
    prediction = model.step(start, rows.action, deterministic=True)
    metrics = {**_observation_metrics(model, codec, start, rows, prediction, generator), **_outcome_metrics(prediction, rows)}
    if not model.decodes:
        metrics["vs_trivial"] = _outcomes_vs_trivial(model, prediction, rows)
    return metrics


def _observation_metrics(
    model: WorldModel,
    codec: Columns,
    start: State,
    rows: Transitions,
    prediction: Prediction,
    generator: th.Generator | None,
) -> dict[str, float]:
    """Compute ``error``, ``copy_error``, ``mean_error`` and ``vs_trivial``; nothing for a model that does not decode."""
    if not model.decodes:
        return {}
    obs, truth = codec.encode(rows.obs).double(), codec.encode(rows.next_obs).double()
    errors = _squared_errors(_decoded(model, codec, prediction.state), truth)
    sampled = ~codec.mask("continuous").to(errors.device) | (model.context > 1)
    if bool(sampled.any()):
        generator = generator or th.Generator().manual_seed(0)
        steps = (model.step(start, rows.action, generator=generator) for _ in range(_SAMPLES))
        samples = th.stack([_decoded(model, codec, step.state) for step in steps])
        # E (mean of n samples - truth)^2 = (model's mean - truth)^2 + variance / n: subtract the second term.
        noise = samples.var(0, correction=1).mean(0).nan_to_num(0.0) / _SAMPLES
        errors = th.where(sampled, _squared_errors(samples.mean(0), truth) - noise, errors).clamp(min=0.0)
    copy, variance = _squared_errors(obs, truth), truth.var(0, correction=0)
    # The mean of a single row is that row: no prediction.
    trivial = th.minimum(copy, variance) if len(truth) > 1 else copy
    judged = _varies(trivial, truth) | ~errors.isfinite()
    ratio = (errors / trivial)[judged].clamp(max=_MAX_RATIO)
    return {
        "error": _normalised(errors, variance, truth),
        "copy_error": _normalised(copy, variance, truth),
        "mean_error": _normalised(variance, variance, truth),
        # If nothing varies, any finite prediction is good enough.
        "vs_trivial": float(ratio.mean()) if len(ratio) else 0.0,
    }


def _outcome_metrics(prediction: Prediction, rows: Transitions) -> dict[str, float]:
    """Compute ``reward_error``, ``term_brier`` and, if an episode has terminated, ``term_recall``."""
    metrics = {
        "reward_error": _reward_error(prediction.reward.double(), rows.reward.double()),
        "term_brier": float((prediction.terminated - rows.terminated).square().mean()),
    }
    if bool(rows.terminated.any()):
        metrics["term_recall"] = float(prediction.terminated[rows.terminated > 0].mean())
    return metrics


def _outcomes(prediction: Prediction) -> th.Tensor:
    """Stack rewards and terminations, ``(B, 2)``, by which a model that does not decode is judged."""
    return th.stack([prediction.reward, prediction.terminated], 1).double()


def _outcomes_vs_trivial(model: WorldModel, prediction: Prediction, rows: Transitions) -> float:
    """Compute ``vs_trivial`` for a model that does not decode, from the rewards and terminations that it has learned."""
    truth = th.stack([rows.reward, rows.terminated], 1).double()
    errors, trivial = _squared_errors(_outcomes(prediction), truth), truth.var(0, correction=0)
    learned = th.tensor([model.reward_fn is None, model.termination_fn is None], device=errors.device)
    judged = learned & (_varies(trivial, truth) | ~errors.isfinite())
    ratio = (errors / trivial)[judged].clamp(max=_MAX_RATIO)
    return float(ratio.mean()) if len(ratio) else 0.0


def _starts(model: WorldModel, rows: Transitions | Sequences) -> tuple[State, Transitions]:
    """Return the states before the steps that are judged, and these steps."""
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
    Compute the open-loop error after the last step of the windows, under the actions that were really taken.

    :param model: a fitted world model; with a context of ``c`` steps it filters the first ``c`` steps and predicts the rest
    :param codec: the columns of the observation space
    :param windows: ``(N, L)`` windows within one episode each, ``L >= c``
    :param variance: ``(D,)``, the variance of encoded observations in all data; by default that of the windows' last
        observations (which is tiny once a policy holds a state)
    :return: the normalised errors of the model's deterministic prediction and of copying the observation it started from; for
        a model that does not decode, the error of the last reward and termination, and 1
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
        # There is no observation to copy; predicting the mean has an error of 1.
        return _normalised(_squared_errors(_outcomes(prediction), truth), spread, truth), 1.0
    truth = codec.encode(tree_map(lambda leaf: leaf[:, -1], windows.next_obs)).double()
    start = codec.encode(tree_map(lambda leaf: leaf[:, context - 1], windows.obs)).double()
    variance = truth.var(0, correction=0) if variance is None else variance.double()
    errors = _squared_errors(_decoded(model, codec, state), truth)
    return _normalised(errors, variance, truth), _normalised(_squared_errors(start, truth), variance, truth)
