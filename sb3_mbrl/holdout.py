"""The evaluation of world models on rows that they have not learned from.

A verdict is meaningful only if it is about rows that were not used in training. There are three kinds of models
(:class:`Trial` tells them apart):

* Models of single observations learn from all rows but those that :func:`~sb3_mbrl.fitting.holdout_mask` holds out.
* Models with a context learn from windows, and neighbouring windows share most of their steps. Blocks of time are held out
  (:func:`held_blocks`): training windows lie outside of them, and the windows for evaluation lie inside, at least a context
  away from every training row.
* Models that cannot leave rows out (``holds_out = False``, such as counts of all steps) are evaluated before they learn: at
  the first fit on the newest part of the data, and later on the steps since the last fit.

If there are too few rows to hold any out, a model is evaluated on the rows that it has learned from.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_mbrl.buffers.replay_view import ReplayData, SelectedRows
from sb3_mbrl.contracts import FitBudget, Sequences, Transitions, WorldModel
from sb3_mbrl.diagnostics.quality import columns_of, one_step_quality
from sb3_mbrl.fitting import HASH_SPACE, fit_world_model, holdout_mask, mixed_hash
from sb3_mbrl.spaces import unsupported_by_vectors
from sb3_mbrl.trees import tree_leaves

BLOCK = 4
"""The length of a held-out block, in contexts: a gap of one context at both ends, and two in between for windows"""

MAX_EVALUATED = 128
"""The largest number of windows or images that a model is evaluated on"""


# ------------------------------------------------------------------------------------------------------------ the verdict


class Verdict(NamedTuple):
    """The result of the evaluation of a world model on real rows."""

    metrics: dict[str, float]
    """The metrics of :func:`~sb3_mbrl.diagnostics.one_step_quality`"""
    limit: float
    """The threshold that ``vs_trivial`` has to be below"""
    unseen: bool
    """Whether the model has learned from none of the rows"""

    @property
    def trusted(self) -> bool:
        """Whether the model is good enough for imagination"""
        return self.metrics["vs_trivial"] < self.limit


def trusted_below(values: int, learned: bool = True) -> float:
    """
    Compute the threshold that ``vs_trivial`` has to be below: ``1 - 1 / sqrt(values)``.

    ``vs_trivial`` is 1 for a model that is as good as a trivial predictor. On few values a useless model is better than that
    by chance, so the threshold is lower by about a standard error of a mean of squares.

    :param values: the number of values in the evaluation: rows that did not terminate times numbers in an observation, and all
        rows once more for a learned reward and for a learned termination that vary
    :param learned: whether the model was learned; for known models, which were fitted to nothing, the threshold is 1
    :return: the threshold; for fewer than four values 0, which no model is below
    """
    if not learned:
        return 1.0
    return 1.0 - 1.0 / math.sqrt(values) if values >= 4 else 0.0


def evaluate(model: WorldModel, rows: Transitions | Sequences, *, unseen: bool = True) -> Verdict:
    """
    Evaluate a model by its predictions of one step.

    :param model: a fitted model in evaluation mode
    :param rows: transitions; for models with a context, windows of that length
    :param unseen: whether the model has learned from none of the rows
    """
    space = model.observation_space
    metrics = one_step_quality(model, columns_of(space), rows)
    ended = rows.terminated if isinstance(rows, Transitions) else rows.terminated[:, -1]
    going = int((ended == 0).sum())
    if not model.decodes:
        values = 0
    elif unsupported_by_vectors(space) is not None:
        values = going  # the pixels of an image are not independent of each other
    else:
        lead = 1 if isinstance(rows, Transitions) else 2
        values = going * sum(leaf[(0,) * lead].numel() for leaf in tree_leaves(rows.next_obs))
    values += len(rows.reward) * sum(f"vs_trivial_{name}" in metrics for name in ("reward", "term"))
    return Verdict(metrics, trusted_below(values, model.learns), unseen)


# ---------------------------------------------------------------------------------------------------------------- the rows


class Split(NamedTuple):
    """A split of real data into training data and evaluation rows."""

    train: ReplayData
    evaluation: Transitions | Sequences | None
    """The evaluation rows; ``None`` if there are none"""
    unseen: bool
    """Whether no evaluation row is a training row"""


def hold_out(data: ReplayData, model: WorldModel, budget: FitBudget) -> Split:
    """
    Split data into training data and evaluation rows, the same way at every fit, so that a row that was trained on is never
    held out later.

    :param data: all real data, at least one row
    :param model: the model, for its context and its spaces
    :param budget: the budget, with ``holdout_ratio`` and ``max_holdout``
    """
    if model.context > 1:
        return _hold_out_blocks(data, model, budget)
    held = _mask(data, data.row_ids()[holdout_mask(data.row_ids(), budget)])
    if not held.any():
        return Split(data, _evaluation_rows(data, model), False)
    evaluation = SelectedRows(data, held)
    return Split(SelectedRows(data, ~held, evaluation), _evaluation_rows(evaluation, model), True)


def _hold_out_blocks(data: ReplayData, model: WorldModel, budget: FitBudget) -> Split:
    """Split data by blocks of time, for a model with a context."""
    held = held_blocks(data.buffer.buffer_size, data.buffer.n_envs, len(data), model.context, budget)
    positions = data.positions()
    if not held[positions].any():
        return Split(data, _evaluation_rows(data, model), False)
    # The inner rows of a held-out block are those with no training row among the 2 * context + 1 rows around them; the others
    # are the gap. The plain version: not near[t - context : t + context + 1].any() for every t, here by running sums.
    near = np.zeros((len(positions) + 2 * model.context, data.buffer.n_envs), dtype=np.int64)
    near[model.context : model.context + len(positions)] = ~held[positions]
    sums = np.concatenate([np.zeros_like(near[:1]), near.cumsum(0)])
    inner = np.zeros_like(held)
    inner[positions] = sums[2 * model.context + 1 :] == sums[: len(positions)]
    evaluation = SelectedRows(data, inner)
    train = SelectedRows(data, ~held, evaluation)
    if not len(evaluation.full_contexts(model.context)):
        return Split(train, _evaluation_rows(train, model), False)
    return Split(train, _evaluation_rows(evaluation, model), True)


def held_blocks(steps: int, n_envs: int, rows: int, context: int, budget: FitBudget) -> np.ndarray:
    """
    Choose the blocks of consecutive steps to hold out: one of every ``1 / holdout_ratio`` blocks of an environment, at a
    pseudo-random place among them.

    The choice depends on the places of the steps in the buffer, as that of single rows does. The first block is never held
    out, and the second block of the first environment always is, so that the first rows are for training, and some are held
    out as soon as there is more than one block.

    :param steps: the number of places per environment
    :param n_envs: the number of environments
    :param rows: the number of stored rows; if there are more than ``max_holdout / holdout_ratio``, fewer blocks are held out
    :param context: the number of steps of the model's context
    :param budget: the budget, with ``holdout_ratio`` (at most every second block is held out) and ``max_holdout``
    :return: ``(steps, n_envs)`` booleans
    """
    if budget.holdout_ratio == 0.0 or budget.max_holdout == 0:
        return np.zeros((steps, n_envs), dtype=bool)
    period = max(2, round(1 / budget.holdout_ratio))
    block = np.arange(-(-steps // (BLOCK * context)))
    group, env = np.meshgrid(np.arange(len(block) // period + 1), np.arange(n_envs), indexing="ij")
    # One hash per environment and group of `period` blocks chooses the block of the group; a hash of the hash chooses the
    # groups in which a block is held out, a share of max_holdout / (holdout_ratio * rows).
    mixed = mixed_hash(th.as_tensor(group * n_envs + env)).numpy()
    place = np.where(group == 0, 1 + mixed % (period - 1), mixed % period)
    place[0, 0] = 1
    share = min(1.0, budget.max_holdout / max(budget.holdout_ratio * rows, 1e-12))
    kept = mixed_hash(th.as_tensor(mixed)).numpy() < share * HASH_SPACE
    kept[0, 0] = True
    held = (place[block // period] == (block % period)[:, None]) & kept[block // period]
    return held.repeat(BLOCK * context, axis=0)[:steps]


def _mask(data: ReplayData, ids: th.Tensor) -> np.ndarray:
    """Return ``(buffer_size, n_envs)`` booleans, true at the rows with these ids."""
    mask = np.zeros((data.buffer.buffer_size, data.buffer.n_envs), dtype=bool)
    mask[data.places(ids)] = True
    return mask


def _evaluation_rows(data: ReplayData, model: WorldModel) -> Transitions | Sequences:
    """Return evaluation rows: transitions, or windows for a model with a context; of windows and images only some."""
    ids = data.row_ids()
    if model.context > 1:
        ids = data.full_contexts(model.context) if isinstance(data, SelectedRows) else ids
        return data.contexts_at(*data.places(_some(ids)), model.context)
    return data.transitions_at(*data.places(_some(ids) if unsupported_by_vectors(model.observation_space) else ids))


def _some(ids: th.Tensor) -> th.Tensor:
    """Choose at most :data:`MAX_EVALUATED` ids, the same ones at every call."""
    return ids[th.randperm(len(ids), generator=th.Generator().manual_seed(0))[:MAX_EVALUATED]]


# ------------------------------------------------------------------------------------------------------------- one fit


class Trial:
    """
    A fit of a world model together with its evaluation. The methods are called in this order::

        trial = Trial(model, data, budget, fresh=...)
        metrics = trial.fit(generator)      # learns from the rows that are not held out
        verdict = trial.evaluate()          # None: there are no new rows to evaluate it on, so the last verdict stays
        metrics |= trial.refit(generator)   # learns from all rows, if the model or the budget asks for it

    ``Trial(...).evaluate()`` evaluates a model without a fit.

    :param model: the world model
    :param data: all real data, at least one row
    :param budget: the limits, the share that is held out, and whether the model learns from all rows in the end (``refit``)
    :param fresh: the number of steps per environment since the last fit; ``None`` at the first fit
    """

    def __init__(self, model: WorldModel, data: ReplayData, budget: FitBudget, *, fresh: int | None = None) -> None:
        self.model, self.data, self.budget = model, data, budget
        self.evaluated_first = model.learns and fresh is not None and (budget.refit or not model.holds_out)
        """Whether the model is evaluated before it learns, since it has learned from all rows but the fresh ones"""
        if self.evaluated_first:
            train = hold_out(data, model, budget).train if model.holds_out else data
            self.split = Split(train, self._newest(min(fresh or 0, len(data.positions()))), True)
        elif model.learns and not model.holds_out:
            self.split = self._older_and_newer()
        else:
            self.split = hold_out(data, model, budget)
        self._verdict: Verdict | None = None
        self._batches: int | None = None

    def fit(self, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Fit the model on the training rows.

        :return: the result of the model's ``fit``
        """
        if not self.model.learns:
            return {}
        if self.evaluated_first:
            self.evaluate()
        metrics = fit_world_model(self.model, self.split.train, self.budget, generator=generator)
        self.model.eval()
        self._batches = _batches(metrics)
        return metrics

    def evaluate(self) -> Verdict | None:
        """Evaluate the model on the evaluation rows; ``None`` if there are none."""
        if self._verdict is None and self.split.evaluation is not None:
            self._verdict = evaluate(self.model, self.split.evaluation, unseen=self.split.unseen)
        return self._verdict

    def refit(self, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Fit the model on all rows, if the budget has ``refit`` or the model cannot leave rows out. (Nothing is done if it has
        learned from all rows already.) A refit takes no more gradient steps than the fit before.

        :return: ``refit_rows``, the number of rows that the model has learned from in the end; empty without a refit
        """
        wanted = self.model.learns and (self.budget.refit or not self.model.holds_out)
        if not wanted or self.split.train is self.data:
            return {}
        limits = {} if self._batches is None else {"max_batches": max(1, self._batches)}
        everything = replace(self.budget, holdout_ratio=0.0, refit=False, **limits)
        fit_world_model(self.model, self.data, everything, generator=generator)
        self.model.eval()
        return {"refit_rows": float(len(self.data))} if self.budget.refit else {}

    def _newest(self, steps: int) -> Transitions | Sequences | None:
        """Return evaluation rows out of the newest steps of all environments; ``None`` if there are none."""
        positions = self.data.positions()
        part = SelectedRows(self.data, _mask_of_steps(self.data, positions[len(positions) - steps :]))
        ids = part.row_ids() if self.model.context == 1 else part.full_contexts(self.model.context)
        return _evaluation_rows(part, self.model) if len(ids) else None

    def _older_and_newer(self) -> Split:
        """Split data by age: the newest steps are evaluation rows, and all others are training rows."""
        positions = self.data.positions()
        steps = int(self.budget.holdout_ratio * len(positions))
        steps = min(steps, -(-self.budget.max_holdout // self.data.buffer.n_envs))
        newest = self._newest(steps)
        train = SelectedRows(self.data, _mask_of_steps(self.data, positions[: len(positions) - steps]))
        if newest is None or not len(train):
            return Split(self.data, _evaluation_rows(self.data, self.model), False)
        return Split(train, newest, True)


def _mask_of_steps(data: ReplayData, positions: np.ndarray) -> np.ndarray:
    """Return ``(buffer_size, n_envs)`` booleans, true at these steps of every environment."""
    mask = np.zeros((data.buffer.buffer_size, data.buffer.n_envs), dtype=bool)
    mask[positions] = True
    return mask


def _batches(metrics: object) -> int | None:
    """Return the number of gradient steps that a fit reports, or ``None``."""
    value = metrics.get("batches") if isinstance(metrics, dict) else None
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
