"""The rows that a world model is judged by, and how they are kept from it while it learns.

A verdict says something only if it is about rows that no gradient and no store has seen. Three kinds of models need three
ways (:class:`Trial` chooses):

* Models of single observations learn from all rows but those that :func:`~sb3_mbrl.fitting.holdout_mask` holds out.
* Models with a context learn from windows, and neighbouring windows share most of their steps. Blocks of time are held out
  (:func:`held_blocks`); training windows lie wholly outside of them, and the windows that they are judged by wholly inside, at
  least a context away from every training row.
* Models that cannot hold anything out (``holds_out = False``: counts that grow with every step) are judged before they learn:
  on the newest part of the data at the first fit, and on the steps since the last fit ever after.

Few rows are not divided: a model that is given too few to hold any out is judged by what it has learned from.
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
"""The length of a held-out block, in contexts: a gap of one at both ends, and two between them for the windows to judge by"""

JUDGED = 128
"""The maximum number of windows or images that a model is judged by"""


# ------------------------------------------------------------------------------------------------------------ the verdict


class Verdict(NamedTuple):
    """A judgement of a world model on real rows."""

    figures: dict[str, float]
    """See :func:`~sb3_mbrl.diagnostics.one_step_quality`"""
    limit: float
    """The number that ``vs_trivial`` has to stay below"""
    unseen: bool
    """Whether the model had learned from none of the rows"""

    @property
    def trusted(self) -> bool:
        """Whether imagination may run."""
        return self.figures["vs_trivial"] < self.limit


def trusted_below(values: int, learned: bool = True) -> float:
    """
    Compute what ``vs_trivial`` has to stay below: on few rows a model that knows nothing is better than a trivial predictor
    by chance.

    :param values: the number of values that it was judged by: rows times the numbers in an observation
    :param learned: whether the model has learned; known models have had no chance to fit anything by chance
    :return: 1 less about a standard error of a mean of squares; for less than four values 0, which nothing is below
    """
    if not learned:
        return 1.0
    return 1.0 - 1.0 / math.sqrt(values) if values >= 4 else 0.0


def judge(model: WorldModel, rows: Transitions | Sequences, *, unseen: bool = True) -> Verdict:
    """
    Judge a model by its predictions of one step.

    :param model: a fitted model in evaluation mode
    :param rows: transitions, or for models with a context windows of so many steps
    :param unseen: whether the model has learned from none of the rows
    """
    space = model.observation_space
    figures = one_step_quality(model, columns_of(space), rows)
    if not model.decodes:
        values = 2  # reward and termination
    elif unsupported_by_vectors(space) is not None:
        values = 1  # the pixels of an image are no independent evidence
    else:
        lead = 1 if isinstance(rows, Transitions) else 2
        values = sum(leaf[(0,) * lead].numel() for leaf in tree_leaves(rows.next_obs))
    return Verdict(figures, trusted_below(len(rows.reward) * values, model.learns), unseen)


# ---------------------------------------------------------------------------------------------------------------- the rows


class Split(NamedTuple):
    """Data to learn from, and rows to judge by."""

    train: ReplayData
    judged: Transitions | Sequences | None
    """``None`` where there is nothing to judge by"""
    unseen: bool
    """Whether the rows to judge by are none of those to learn from"""


def hold_out(data: ReplayData, model: WorldModel, budget: FitBudget) -> Split:
    """
    Divide data into what a model learns from and what it is judged by, the same way at every fit: a row that was trained on is
    never held out later.

    :param data: the whole, at least one row
    :param model: the model, for its context and its spaces
    :param budget: its ``holdout_ratio`` and ``max_holdout``
    """
    if model.context > 1:
        return _hold_out_blocks(data, model, budget)
    held = _mask(data, data.row_ids()[holdout_mask(data.row_ids(), budget)])
    if not held.any():
        return Split(data, _rows_to_judge(data, model), False)
    judged = SelectedRows(data, held)
    return Split(SelectedRows(data, ~held, judged), _rows_to_judge(judged, model), True)


def _hold_out_blocks(data: ReplayData, model: WorldModel, budget: FitBudget) -> Split:
    held = held_blocks(data.buffer.buffer_size, data.buffer.n_envs, len(data), model.context, budget)
    positions = data.positions()
    if not held[positions].any():
        return Split(data, _rows_to_judge(data, model), False)
    # Rows of a held-out block that are no more than a context away from a training row are the gap.
    near = np.zeros((len(positions) + 2 * model.context, data.buffer.n_envs), dtype=np.int64)
    near[model.context : model.context + len(positions)] = ~held[positions]
    sums = np.concatenate([np.zeros_like(near[:1]), near.cumsum(0)])
    inner = np.zeros_like(held)
    inner[positions] = sums[2 * model.context + 1 :] == sums[: len(positions)]
    judged = SelectedRows(data, inner)
    train = SelectedRows(data, ~held, judged)
    if not len(judged.full_contexts(model.context)):
        return Split(train, _rows_to_judge(train, model), False)
    return Split(train, _rows_to_judge(judged, model), True)


def held_blocks(steps: int, n_envs: int, rows: int, context: int, budget: FitBudget) -> np.ndarray:
    """
    Choose blocks of consecutive steps: of every ``1 / holdout_ratio`` blocks of an environment one, at a pseudo-random place.

    The choice depends on where steps are stored, as that of single rows does. The first block is never held out and the
    second block of the first environment always is, so that the first rows are for learning, and some are held out as
    soon as there is more than a block.

    :param steps: places per environment
    :param n_envs: the number of environments
    :param rows: the number of rows that there are: with more than ``max_holdout / holdout_ratio`` fewer blocks are held out
    :param context: the number of steps of the model's context
    :param budget: its ``holdout_ratio`` (at most every second block is held out) and ``max_holdout``
    :return: ``(steps, n_envs)`` booleans
    """
    if budget.holdout_ratio == 0.0 or budget.max_holdout == 0:
        return np.zeros((steps, n_envs), dtype=bool)
    period = max(2, round(1 / budget.holdout_ratio))
    block = np.arange(-(-steps // (BLOCK * context)))
    group, env = np.meshgrid(np.arange(len(block) // period + 1), np.arange(n_envs), indexing="ij")
    # One number per group of blocks and environment; its low bits choose the place, its high bits what a share is held out of.
    mixed = mixed_hash(th.as_tensor(group * n_envs + env)).numpy()
    place = np.where(group == 0, 1 + mixed % (period - 1), mixed % period)
    place[0, 0] = 1
    share = min(1.0, budget.max_holdout / max(budget.holdout_ratio * rows, 1e-12))
    kept = mixed_hash(th.as_tensor(mixed)).numpy() < share * HASH_SPACE
    kept[0, 0] = True
    held = (place[block // period] == (block % period)[:, None]) & kept[block // period]
    return held.repeat(BLOCK * context, axis=0)[:steps]


def _mask(data: ReplayData, ids: th.Tensor) -> np.ndarray:
    """``(buffer_size, n_envs)`` booleans, true at the rows with these ids."""
    mask = np.zeros((data.buffer.buffer_size, data.buffer.n_envs), dtype=bool)
    mask[data.places(ids)] = True
    return mask


def _rows_to_judge(data: ReplayData, model: WorldModel) -> Transitions | Sequences:
    """Transitions, or windows for a model with a context; of windows and images some, always the same of the same data."""
    ids = data.row_ids()
    if model.context > 1:
        ids = data.full_contexts(model.context) if isinstance(data, SelectedRows) else ids
        return data.contexts_at(*data.places(_some(ids)), model.context)
    return data.transitions_at(*data.places(_some(ids) if unsupported_by_vectors(model.observation_space) else ids))


def _some(ids: th.Tensor) -> th.Tensor:
    """At most :data:`JUDGED` of them, always the same."""
    return ids[th.randperm(len(ids), generator=th.Generator().manual_seed(0))[:JUDGED]]


# ------------------------------------------------------------------------------------------------------------- one fit


class Trial:
    """
    One fit of a world model and the verdict on it. Called in this order::

        trial = Trial(model, data, budget, fresh=...)
        metrics = trial.fit(generator)      # learns from what is not held out
        verdict = trial.judge()             # None: there was nothing new to judge it by, so the last verdict stays
        metrics |= trial.refit(generator)   # learns from the rest too, where the model or the budget wants that

    A verdict without a fit: ``Trial(...).judge()``.

    :param model: the world model
    :param data: all real data, at least one row
    :param budget: limits, the share that is held out, and whether the model learns from all rows in the end (``refit``)
    :param fresh: the steps per environment since the last fit; ``None`` at the first fit
    """

    def __init__(self, model: WorldModel, data: ReplayData, budget: FitBudget, *, fresh: int | None = None) -> None:
        self.model, self.data, self.budget = model, data, budget
        self._judged_first = model.learns and fresh is not None and (budget.refit or not model.holds_out)
        """Whether it is judged before it learns: it has learned from all rows but the fresh ones"""
        if self._judged_first:
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
        Fit the model on all rows that it is not to be judged by.

        :return: what the model's ``fit`` returns
        """
        if not self.model.learns:
            return {}
        if self._judged_first:
            self.judge()
        metrics = fit_world_model(self.model, self.split.train, self.budget, generator=generator)
        self.model.eval()
        self._batches = _batches(metrics)
        return metrics

    def judge(self) -> Verdict | None:
        """Judge the model by rows that it has not seen, if there are any. ``None``: there is nothing to judge it by."""
        if self._verdict is None and self.split.judged is not None:
            self._verdict = judge(self.model, self.split.judged, unseen=self.split.unseen)
        return self._verdict

    def refit(self, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Fit the model on all rows, if some were kept from it and the budget has ``refit``, or the model cannot hold any out. It
        takes no more gradient steps than the fit before.

        :return: ``refit_rows``, the number of rows that the model has learned from in the end; nothing without a refit
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
        """The rows to judge by among the newest steps of all environments; ``None`` where there is none."""
        positions = self.data.positions()
        part = SelectedRows(self.data, _mask_of_steps(self.data, positions[len(positions) - steps :]))
        ids = part.row_ids() if self.model.context == 1 else part.full_contexts(self.model.context)
        return _rows_to_judge(part, self.model) if len(ids) else None

    def _older_and_newer(self) -> Split:
        """The newest share of the data to judge by, and the rest to learn from."""
        positions = self.data.positions()
        steps = int(self.budget.holdout_ratio * len(positions))
        steps = min(steps, -(-self.budget.max_holdout // self.data.buffer.n_envs))
        newest = self._newest(steps)
        train = SelectedRows(self.data, _mask_of_steps(self.data, positions[: len(positions) - steps]))
        if newest is None or not len(train):
            return Split(self.data, _rows_to_judge(self.data, self.model), False)
        return Split(train, newest, True)


def _mask_of_steps(data: ReplayData, positions: np.ndarray) -> np.ndarray:
    """``(buffer_size, n_envs)`` booleans, true at these steps of every environment."""
    mask = np.zeros((data.buffer.buffer_size, data.buffer.n_envs), dtype=bool)
    mask[positions] = True
    return mask


def _batches(metrics: object) -> int | None:
    """The number of gradient steps that a fit reports, if it does."""
    value = metrics.get("batches") if isinstance(metrics, dict) else None
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
