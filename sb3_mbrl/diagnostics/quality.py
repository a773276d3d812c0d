"""Metrics of a world model on real data that it was not trained on, compared with trivial predictors.

Errors of observations are *normalised*: the root of the mean over columns of (squared error / variance of that column in the
data), so that predicting the mean has an error of 1. Columns that do not vary in the data are left out.

**The verdict** is ``vs_trivial``: for every column of the next observation, and for the reward and the termination as far as
they are learned, the model's squared error relative to that of the better of two trivial predictors (copy the state; predict
the mean), at most 2, averaged over columns::

    vs_trivial = mean_j min(2, E_j / min(C_j, V_j))

with the mean squared error of the model ``E_j`` and of copying ``C_j``, and the variance ``V_j`` (reward and termination
cannot be copied: there it is ``V_j`` alone). Imagination runs if it is below 1 by more than chance. The reasons:

* Ratios are per column, because a sum is dominated by the columns with the largest scale or by the hardest ones.
* They are capped at 2, so that one impossible column among several does not veto a model, while a model that is broken
  everywhere gets 2. In columns that nothing can predict, a model that has learned to predict the mean has a ratio of 1:
  whether it learned anything is then decided by the other columns.
* Columns that do not vary are left out, and so is a reward or a termination that is known.
* Of a reward or a termination that hardly ever differs from its mean, the ratio is mostly chance: with one termination in a
  hundred rows it is 2 for a model that knows the probabilities. Below ten such events it is drawn towards 1
  (:func:`_outcome_ratios`).
* Next observations of steps that terminated are left out: what follows an end has no value, and imagination ends there.
* Ratios are averaged, not their logarithms: a few columns predicted perfectly must not outweigh many that are wrong.
* The error is that of the model's *mean*. For continuous columns a deterministic step is the mean; for categories and bits it
  is the mode, and a mode loses against the mean wherever the world is random, even if the model knows the true probabilities.
  There, and for all columns of models that filter a context, whose latent states are drawn, the mean is estimated from
  samples, without bias. Reward and termination of such models may be either (those of a count of outcomes are the mode's):
  the lower error of both counts.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_mbrl.contracts import Obs, Prediction, Sequences, Transitions, WorldModel
from sb3_mbrl.spaces import Kind, SpaceCodec, unsupported_by_vectors
from sb3_mbrl.trees import State, batch_size, finite_rows, tree_index, tree_map

_MAX_RATIO = 2.0
_CONSTANT = 1e-12
"""The largest variance, relative to the mean square, of a column that counts as constant"""
_SAMPLES = 8
"""The number of samples from which a mean is estimated"""
_EVENTS = 10.0
"""The number of independent events from which on a reward or a termination has a full vote"""
CHUNK = 2**18
"""The number of values (rows times columns) that are evaluated at a time, so that many categories do not take much memory"""


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


def _varies(variance: th.Tensor, square: th.Tensor) -> th.Tensor:
    """Tell which columns vary, by their variance and their mean square."""
    return variance > _CONSTANT * square.clamp(min=_CONSTANT)


class _Moments(NamedTuple):
    """Sums over rows from which means and variances are computed, ``(D,)`` each."""

    rows: int
    errors: th.Tensor
    """The sums of the model's squared errors"""
    noise: th.Tensor
    """The sums of the variances of sampled means"""
    copies: th.Tensor
    """The sums of the squared errors of copying"""
    mean: th.Tensor
    """The mean of the true values"""
    spread: th.Tensor
    """The sums of the squared deviations of the true values from their mean"""
    squares: th.Tensor
    """The sums of the squares of the true values"""

    def joined(self, other: "_Moments") -> "_Moments":
        """Return the sums over the rows of both."""
        # Chan et al. (1979): of two parts with means m, m' of n, n' rows, the spread of all is
        # spread + spread' + (m' - m)^2 n n' / (n + n').
        rows, step = self.rows + other.rows, other.mean - self.mean
        mean = self.mean + step * (other.rows / rows)
        spread = self.spread + other.spread + step.square() * (self.rows * other.rows / rows)
        errors, noise, copies = self.errors + other.errors, self.noise + other.noise, self.copies + other.copies
        return _Moments(rows, errors, noise, copies, mean, spread, self.squares + other.squares)


@th.no_grad()
def one_step_quality(
    model: WorldModel, codec: Columns, rows: Transitions | Sequences, generator: th.Generator | None = None
) -> dict[str, float]:
    """
    Judge one-step predictions on real rows, which should be held out from training. The metrics are:

    * ``vs_trivial``: the verdict (see the top of this file), and its parts: ``vs_trivial_obs``, the mean over the columns of
      the next observation, ``vs_trivial_reward`` and ``vs_trivial_term``, as far as they have a vote
    * ``error``: the normalised error of the next observation; ``copy_error`` and ``mean_error``: those of copying the present
      observation and of predicting the mean next one. They are missing where all steps terminated
    * ``reward_error``: the root mean squared error of the reward, relative to its standard deviation; for a constant reward,
      relative to its size (absolute if it is always 0)
    * ``term_brier``: the mean squared error of the termination probability; ``term_recall``: the mean probability on true
      terminations, if there are any

    :param model: a fitted world model
    :param codec: the columns of the observation space (:func:`columns_of`)
    :param rows: at least one transition; for models with a context, windows of that length, whose last step is judged
    :param generator: the source of randomness for sampled means (``None``: a fixed seed)
    """
    generator = generator or th.Generator().manual_seed(0)
    sampled = ~codec.mask("continuous") | (model.context > 1)
    draws = model.decodes and bool(sampled.any())
    outcomes, truths, means, noises, moments = [], [], [], [], None
    for part in _chunks(rows, len(sampled)):
        start, step = _starts(model, tree_map(lambda leaf: leaf.to(model.device), part))
        prediction = model.step(start, step.action, deterministic=True)
        outcomes.append(_outcomes(prediction))
        truths.append(th.stack([step.reward, step.terminated], 1).double())
        drawn = [model.step(start, step.action, generator=generator) for _ in range(_SAMPLES)] if draws else []
        if drawn:
            samples = th.stack([_outcomes(sample) for sample in drawn])
            means.append(samples.mean(0))
            noises.append(samples.var(0, correction=1).nan_to_num(0.0) / _SAMPLES)
        more = _moments(model, codec, step, prediction, drawn, sampled) if model.decodes else None
        moments = more if moments is None or more is None else moments.joined(more)
    outcome, truth = th.cat(outcomes), th.cat(truths)
    metrics, ratios = ({}, th.zeros(0)) if moments is None or not moments.rows else _observation_metrics(moments)
    errors = _squares(outcome, truth)
    if means:  # without bias, as for observations
        errors = th.minimum(errors, (_squares(th.cat(means), truth) - th.cat(noises).sum(0)).clamp(min=0.0))
    votes = {"obs": ratios, **_outcome_ratios(model, errors / len(truth), truth)}
    everything = th.cat([ratio.cpu().double() for ratio in votes.values()])
    # If nothing varies, any finite prediction is good enough.
    metrics["vs_trivial"] = float(everything.mean()) if len(everything) else 0.0
    metrics |= {f"vs_trivial_{name}": float(ratio.mean()) for name, ratio in votes.items() if len(ratio)}
    return {**metrics, **_outcome_metrics(outcome, truth)}


def _chunks(rows: Transitions | Sequences, columns: int) -> Iterator[Any]:
    """Split rows into parts of at most :data:`CHUNK` values."""
    size = max(1, CHUNK // max(columns, 1))
    for begin in range(0, len(rows.reward), size):
        yield tree_index(rows, slice(begin, begin + size))


def _moments(
    model: WorldModel,
    codec: Columns,
    rows: Transitions,
    prediction: Prediction,
    drawn: list[Prediction],
    sampled: th.Tensor,
) -> _Moments:
    """
    Sum over the rows that did not terminate.

    :param prediction: the deterministic step
    :param drawn: samples of the step, if there are columns whose mean is estimated from them
    :param sampled: ``(D,)`` booleans, true for these columns
    """
    going = rows.terminated == 0
    obs, truth = (codec.encode(value).double()[going] for value in (rows.obs, rows.next_obs))
    errors = _squares(_decoded(model, codec, prediction.state)[going], truth)
    noise = th.zeros_like(errors)
    if drawn:
        sampled = sampled.to(errors.device)
        samples = th.stack([_decoded(model, codec, step.state)[going] for step in drawn])
        # E (mean of n samples - truth)^2 = (model's mean - truth)^2 + variance / n: the second term is subtracted.
        noise = th.where(sampled, samples.var(0, correction=1).nan_to_num(0.0).sum(0) / _SAMPLES, 0.0)
        errors = th.where(sampled, _squares(samples.mean(0), truth), errors)
    mean = truth.mean(0).nan_to_num(0.0)  # of no rows
    spread = (truth - mean).square().sum(0)
    return _Moments(len(truth), errors, noise, _squares(obs, truth), mean, spread, truth.square().sum(0))


def _squares(prediction: th.Tensor, truth: th.Tensor) -> th.Tensor:
    """Sum squared errors over rows, ``(D,)``. A prediction that is not finite has an infinite error."""
    return th.nan_to_num((prediction - truth).square().sum(0), nan=float("inf"), posinf=float("inf"))


def _observation_metrics(moments: _Moments) -> tuple[dict[str, float], th.Tensor]:
    """Compute ``error``, ``copy_error`` and ``mean_error``, and the ratios of the columns that vary."""
    n = moments.rows
    errors, copy, variance, square = (
        value / n for value in (moments.errors - moments.noise, moments.copies, moments.spread, moments.squares)
    )
    errors = errors.clamp(min=0.0)
    # The mean of a single row is that row: no prediction.
    trivial = th.minimum(copy, variance) if n > 1 else copy
    metrics = {
        "error": _normalised(errors, variance, square),
        "copy_error": _normalised(copy, variance, square),
        "mean_error": _normalised(variance, variance, square),
    }
    return metrics, _ratios(errors, trivial, square)


def _ratios(errors: th.Tensor, trivial: th.Tensor, square: th.Tensor) -> th.Tensor:
    """Compute the ratios to trivial predictors of those columns that vary, or are not predicted at all."""
    judged = _varies(trivial, square) | ~errors.isfinite()
    return (errors / trivial)[judged].nan_to_num(nan=_MAX_RATIO).clamp(max=_MAX_RATIO)


def _outcome_ratios(model: WorldModel, errors: th.Tensor, truth: th.Tensor) -> dict[str, th.Tensor]:
    """
    Compute the ratios of reward and termination to their means, each ``(1,)``, or ``(0,)`` where it has no vote.

    The fewer events the variance of a column comes from, the closer its ratio is drawn to 1. With the variance ``V`` and the
    fourth moment ``M`` of ``n`` rows, and the ratio ``r``::

        events = n V^2 / M          about the number of ones, if these are rare; n / 3 for normally distributed values
        r <- 1 + (r - 1) min(1, events / 10)

    :param errors: the mean squared errors of reward and termination, ``(2,)``
    :param truth: the true ones, ``(B, 2)``
    """
    trivial, square = truth.var(0, correction=0), truth.square().mean(0)
    fourth = (truth - truth.mean(0)).pow(4).mean(0)
    share = (len(truth) * trivial.square() / fourth / _EVENTS).nan_to_num(1.0).clamp(max=1.0)
    learned = {"reward": model.reward_fn is None, "term": model.termination_fn is None}
    ratios = {}
    for i, (name, has_vote) in enumerate(learned.items()):
        one = slice(i, i + 1) if has_vote else slice(0, 0)
        ratio = _ratios(errors[one], trivial[one], square[one])
        ratios[name] = th.where(errors[one].isfinite(), 1.0 + (ratio - 1.0) * share[one], ratio) if len(ratio) else ratio
    return ratios


def _outcome_metrics(outcome: th.Tensor, truth: th.Tensor) -> dict[str, float]:
    """Compute ``reward_error``, ``term_brier`` and, if an episode has terminated, ``term_recall``."""
    ended = truth[:, 1] > 0
    metrics = {
        "reward_error": _reward_error(outcome[:, 0], truth[:, 0]),
        "term_brier": float((outcome[:, 1] - truth[:, 1]).square().mean()),
    }
    if bool(ended.any()):
        metrics["term_recall"] = float(outcome[ended, 1].mean())
    return metrics


def _outcomes(prediction: Prediction) -> th.Tensor:
    """Stack rewards and terminations, ``(B, 2)``."""
    return th.stack([prediction.reward, prediction.terminated], 1).double()


def variance_of(codec: Columns, obs: Obs) -> th.Tensor:
    """Compute the variance of every column over rows of observations, ``(D,)``, without encoding them all at once."""
    size = max(1, CHUNK // max(len(codec.mask("continuous")), 1))
    rows = batch_size(obs)
    if rows <= size:
        return codec.encode(obs).var(0, correction=0)
    # Two passes: the mean, then the mean square of the deviations from it.
    parts = [slice(begin, begin + size) for begin in range(0, rows, size)]
    mean = sum(codec.encode(tree_index(obs, part)).double().sum(0) for part in parts) / rows
    squares = sum((codec.encode(tree_index(obs, part)).double() - mean).square().sum(0) for part in parts)
    return th.as_tensor(squares / rows)


def _starts(model: WorldModel, rows: Transitions | Sequences) -> tuple[State, Transitions]:
    """Return the states before the steps that are judged, and these steps."""
    if isinstance(rows, Transitions):
        return model.initial(rows.obs), rows
    last = tree_map(lambda leaf: leaf[:, -1], rows)
    judged = Transitions(last.obs, last.action, last.next_obs, last.reward, last.terminated)
    return model.filter(rows.obs, rows.action, rows.is_first), judged


def _reward_error(predicted: th.Tensor, reward: th.Tensor) -> float:
    variance, square = reward.var(correction=0), reward.square().mean()
    if not bool(_varies(variance, square)):
        variance = square
    scale = variance.sqrt() if bool(variance > 0) else th.ones_like(variance)
    return float(_squared_errors(predicted, reward).sqrt() / scale)


def _normalised(errors: th.Tensor, variance: th.Tensor, square: th.Tensor) -> float:
    varies = _varies(variance, square)
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
        a model that does not decode, the error of the last reward and termination, and 1. What follows a termination does not
        count: NaN where all windows end in one
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
        return _normalised(_squared_errors(_outcomes(prediction), truth), spread, truth.square().mean(0)), 1.0
    going = windows.terminated[:, -1] == 0
    if not bool(going.any()):
        return float("nan"), float("nan")
    truth = codec.encode(tree_map(lambda leaf: leaf[:, -1], windows.next_obs)).double()[going]
    start = codec.encode(tree_map(lambda leaf: leaf[:, context - 1], windows.obs)).double()[going]
    variance, square = truth.var(0, correction=0) if variance is None else variance.double(), truth.square().mean(0)
    errors = _squared_errors(_decoded(model, codec, state)[going], truth)
    return _normalised(errors, variance, square), _normalised(_squared_errors(start, truth), variance, square)
