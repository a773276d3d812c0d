"""Figures of a world model's quality on real data that it was not trained on, against predictors that know nothing.

Errors of observations are *normalised*: the root of the mean over columns of (squared error / variance of that column in the data), so that 1
is what predicting the mean gets. Columns that do not vary in the data are left out.
"""


import torch as th

from sb3_mbrl.contracts import Sequences, Transitions, WorldModel
from sb3_mbrl.spaces import SpaceCodec
from sb3_mbrl.states import state_index, state_map

_MAX_RATIO = 2.0


class ModelQualityWarning(UserWarning):
    """The world model predicts worse than a trivial predictor."""


def _squared_errors(prediction: th.Tensor, truth: th.Tensor) -> th.Tensor:
    """``(D,)``; a prediction that is not finite counts as infinitely wrong."""
    return th.nan_to_num((prediction - truth).square().mean(0), nan=float("inf"))


@th.no_grad()
def one_step_quality(model: WorldModel, codec: SpaceCodec, rows: Transitions) -> dict[str, float]:
    """
    Judge one-step predictions (the model's mean) on held-out rows.

    * ``error``: normalised error of the next observation; ``copy_error`` and ``mean_error``: of the copied state and of the mean next
      observation
    * ``vs_trivial``: mean over columns of squared error relative to the better trivial predictor's, each at most 2. Below 1 the model is
      better; this is what decides whether imagination runs
    * ``reward_error``: relative to the reward's deviation (0 where it is constant and predicted so)
    * ``term_brier``: mean squared error of the termination probability; ``term_recall``: mean probability on true terminations, where any

    :param model: fitted, without a context (``model.context == 1``)
    :param codec: of the observation space
    :param rows: held-out transitions, at least one
    """
    rows = state_map(lambda leaf: leaf.to(model.device), rows)
    prediction = model.step(model.initial(rows.obs), rows.action, deterministic=True)
    obs, truth = codec.encode(rows.obs), codec.encode(rows.next_obs)
    predicted = codec.encode(model.decode(prediction.state))
    variance = truth.var(0, correction=0)
    errors, copy = _squared_errors(predicted, truth), _squared_errors(obs, truth)
    trivial = th.minimum(copy, variance)
    varies = trivial > 1e-12 * truth.square().mean(0).clamp(min=1e-12)
    ratio = (errors / trivial)[varies].clamp(max=_MAX_RATIO)
    reward_error = (prediction.reward - rows.reward).square().mean().sqrt()
    figures = {
        "error": _normalised(errors, variance),
        "copy_error": _normalised(copy, variance),
        "mean_error": _normalised(variance, variance),
        # Nothing varies: any finite prediction will do.
        "vs_trivial": float(ratio.mean()) if len(ratio) else 0.0,
        "reward_error": float(reward_error / rows.reward.std(correction=0).clamp(min=1e-6)),
        "term_brier": float((prediction.terminated - rows.terminated).square().mean()),
    }
    if bool(rows.terminated.any()):
        figures["term_recall"] = float(prediction.terminated[rows.terminated > 0].mean())
    return figures


def _normalised(errors: th.Tensor, variance: th.Tensor) -> float:
    varies = variance > 1e-12
    return float((errors[varies] / variance[varies]).mean().sqrt()) if bool(varies.any()) else 0.0


@th.no_grad()
def k_step_error(
    model: WorldModel, codec: SpaceCodec, windows: Sequences, variance: th.Tensor | None = None
) -> tuple[float, float]:
    """
    Open-loop error after the last step of the windows, under the actions that were really taken.

    :param model: fitted; with a context of ``c`` steps the first ``c`` columns are filtered and the rest predicted
    :param codec: of the observation space
    :param windows: ``(N, L)`` within one episode each
    :param variance: ``(D,)``, of encoded observations in all data; by default that of where the windows end (which is tiny once a policy
        holds a state)
    :return: normalised error of the model (its mean), and of copying the observation it started from
    """
    windows = state_map(lambda leaf: leaf.to(model.device), windows)
    context = model.context
    past = state_index(windows, (slice(None), slice(0, context)))  # type: ignore[arg-type]
    state = model.filter(past.obs, past.action, past.is_first)
    for t in range(context - 1, windows.reward.shape[1]):
        state = model.step(state, windows.action[:, t], deterministic=True).state
    truth = codec.encode(state_map(lambda leaf: leaf[:, -1], windows.next_obs))
    start = codec.encode(state_map(lambda leaf: leaf[:, context - 1], windows.obs))
    variance = truth.var(0, correction=0) if variance is None else variance
    errors = _squared_errors(codec.encode(model.decode(state)), truth)
    return _normalised(errors, variance), _normalised(_squared_errors(start, truth), variance)
