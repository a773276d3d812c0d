"""The training loop of world models: holdout, early stopping, budget, and the best weights of every member.

The loop differs from that of MBPO's code on purpose:

* A row is held out by a hash of its place in the buffer, so a held-out row stays held out from fit to fit. (The reference
  splits the rows anew at every fit while it keeps the weights, so it tests a model on rows that it was trained on.)
* Patience counts rounds: an epoch, or as many as make 32 gradient steps. On 300 rows five epochs are ten steps, after which
  the error can still fall tenfold.
* Weights are compared with those before the fit, and the best on the holdout data are kept per member, whether the fit ends
  by itself, by its budget or by Ctrl-C.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import torch as th

from sb3_mbrl.contracts import Data, FitBudget, Loss, Sequences, Transitions, WorldModel
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.specs import CHANGED_IN_2, CONTRACT_VERSION

HASH_SPACE = 2**20
"""The number of values of :func:`mixed_hash`"""

MIN_ROUND = 32
"""
The smallest number of gradient steps between two evaluations on the holdout data. On few rows an epoch has one or two steps,
and a patience of five such epochs would end a fit too early.
"""


def mixed_hash(ids: th.Tensor) -> th.Tensor:
    """
    Hash integers, so that neighbouring ones have unrelated values.

    :param ids: ``(N,)`` integers
    :return: ``(N,)`` integers from 0 to ``HASH_SPACE - 1``; equal integers have equal hashes
    """
    # Two rounds of multiply-and-shift mixing in 64 bits, which wrap around.
    mixed = (ids.long() + 1) * 0x2545F4914F6CDD1D
    mixed = (mixed ^ (mixed >> 29)) * 0x1B03738712FAD5C9
    return (mixed >> 32) & (HASH_SPACE - 1)


def holdout_mask(ids: th.Tensor, budget: FitBudget) -> th.Tensor:
    """
    Choose the rows to hold out, pseudo-randomly by row id, so that a row that was trained on is never held out later.

    A row is held out if its hash is below ``min(holdout_ratio, max_holdout / N)`` of the hash space.

    :param ids: ``(N,)`` integers: the places of the rows in the buffer
    :param budget: the budget, with ``holdout_ratio`` and ``max_holdout``
    :return: ``(N,)`` booleans; at least one row is left for training, so none is held out of fewer than two
    """
    n = len(ids)
    share = min(budget.holdout_ratio, budget.max_holdout / max(n, 1))
    mask = mixed_hash(ids) < share * HASH_SPACE
    if n and bool(mask.all()):
        mask[0] = False
    return mask


def split_rows(data: Data, budget: FitBudget) -> tuple[Transitions, Transitions | None]:
    """
    Split the rows of a fit into training rows and holdout rows for early stopping.

    An agent has held rows out already (:meth:`~sb3_mbrl.contracts.Data.held_out`). If not, as in a fit without an agent, the
    same rows are held out here.

    :param data: the data that ``fit`` was given
    :param budget: the budget, with ``holdout_ratio`` and ``max_holdout``
    :return: both parts, oldest first; ``None`` for the holdout rows if there are too few rows to hold any out
    """
    rows, held_out = data.transitions(), data.held_out()
    if held_out is not None:
        return rows, held_out.transitions()
    held = holdout_mask(data.row_ids(), budget)
    if not bool(held.any()):
        return rows, None
    return index_transitions(rows, (~held).nonzero().flatten()), index_transitions(rows, held.nonzero().flatten())


def training_ids(data: Data, budget: FitBudget) -> th.Tensor:
    """Return the ids of the training rows of :func:`split_rows`, in their order."""
    ids = data.row_ids()
    return ids if data.held_out() is not None else ids[~holdout_mask(ids, budget)]


def bootstrap_weights(ids: th.Tensor, members: int) -> th.Tensor:
    """
    Return the weight of every row for every member, ``(E, N)``: a draw from the exponential distribution with mean 1, the same
    in every fit, since it is computed from the row's id (DHMBPO's code draws it when a transition is stored).

    :param ids: ``(N,)`` integers
    :param members: ``E``
    """
    # Inverse transform sampling from (hash + 1/2) / HASH_SPACE, which is uniform between 0 and 1, both excluded.
    hashes = mixed_hash(ids.long() * members + th.arange(members)[:, None] + members)
    return -((hashes.double() + 0.5) / HASH_SPACE).log().float()


class BestWeights:
    """
    A store of the best weights so far, separately for every member of an ensemble.

    :param parameters: the parameters, each with the members as first axis, or of any shape for a single member
    :param members: the number of members
    :param min_improvement: the relative fall of the error that counts as an improvement
    """

    def __init__(self, parameters: Iterable[th.Tensor], members: int, min_improvement: float) -> None:
        self.parameters = [p if members > 1 else p[None] for p in (q.detach() for q in parameters)]
        self.saved = [p.clone() for p in self.parameters]
        self.scores = th.full((members,), float("inf"))
        self.reference = self.scores.clone()
        self.min_improvement = min_improvement

    def update(self, scores: th.Tensor) -> bool:
        """
        Save the present weights of every member whose error is lower than ever before.

        :param scores: the errors of the members, ``(E,)``; NaN is never lower
        :return: whether the error of any member fell by ``min_improvement`` since its last such fall
        """
        scores = scores.detach().cpu()
        better = scores < self.scores
        if bool(better.any()):
            index = better.nonzero().flatten()
            for saved, parameter in zip(self.saved, self.parameters, strict=True):
                saved[index] = parameter[index]
            self.scores[index] = scores[index]
        enough = (scores < self.reference * (1 - self.min_improvement)) | (self.reference.isinf() & scores.isfinite())
        self.reference = th.where(enough, scores, self.reference)
        return bool(enough.any())

    @th.no_grad()
    def restore(self) -> None:
        """Copy the best weights back into the parameters."""
        for saved, parameter in zip(self.saved, self.parameters, strict=True):
            parameter.copy_(saved)


class StatisticalBestWeights:
    """
    A store of the best weights so far, of all members together, compared row by row: by a paired one-sided t test on the
    errors of the same rows (DHMBPO's code).

    Noise in the held-out error then neither ends a fit early nor keeps weights that are better by chance.

    :param parameters: the parameters
    """

    IMPROVES = 0.5
    """The largest p-value at which an error counts as an improvement, which resets the patience: any fall at all"""
    KEEPS = 0.1
    """The largest p-value at which weights are kept"""

    def __init__(self, parameters: Iterable[th.Tensor]) -> None:
        self.parameters = [parameter.detach() for parameter in parameters]
        self.saved = [parameter.clone() for parameter in self.parameters]
        self.rows: th.Tensor | None = None
        """The errors of the rows with the weights that are kept"""

    @property
    def scores(self) -> th.Tensor:
        """The mean error with the weights that are kept, ``(1,)``"""
        return th.full((1,), float("inf")) if self.rows is None else self.rows.mean().reshape(1)

    def update(self, scores: th.Tensor) -> bool:
        """
        Save the present weights if the errors are lower than with the kept ones.

        :param scores: the errors of the rows, ``(N,)``
        :return: whether they are an improvement
        """
        scores = scores.detach().double().cpu()
        if not bool(scores.isfinite().all()):
            return False
        p = 0.0 if self.rows is None else p_value(self.rows - scores)
        if p < self.KEEPS:
            self.rows = scores
            for saved, parameter in zip(self.saved, self.parameters, strict=True):
                saved.copy_(parameter)
        return p < self.IMPROVES

    @th.no_grad()
    def restore(self) -> None:
        """Copy the best weights back into the parameters."""
        for saved, parameter in zip(self.saved, self.parameters, strict=True):
            parameter.copy_(saved)


def p_value(differences: th.Tensor) -> float:
    """
    Return the p-value of a one-sided t test: the probability of a mean this large if the true mean were 0.

    Student's distribution is computed by the normal one (Abramowitz and Stegun, 26.7.8), to within 0.01 from three rows on.

    :param differences: ``(N,)``
    """
    n = len(differences)
    mean, std = float(differences.mean()), float(differences.std()) if n > 1 else 0.0
    if std == 0.0:
        return 0.5 if mean == 0.0 else float(mean < 0.0)
    t, free = mean / (std / math.sqrt(n)), n - 1
    z = t * (1 - 1 / (4 * free)) / math.sqrt(1 + t * t / (2 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


class Best(Protocol):
    """A store of the best weights so far."""

    @property
    def scores(self) -> th.Tensor:
        """The errors with the weights that are kept"""

    def update(self, scores: th.Tensor) -> bool:
        """Save the present weights where they are better, and tell whether they are an improvement."""

    def restore(self) -> None:
        """Copy the best weights back into the parameters."""


class Steps(Protocol):
    """A function that trains for one epoch."""

    def __call__(self) -> Iterator[float]:
        """Run one epoch, and yield the loss after every gradient step."""


def train_epochs(
    steps: Steps,
    evaluate: Callable[[], th.Tensor],
    best: Best,
    budget: FitBudget,
    progress: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """
    Train until the budget or the patience is used up, and restore the best weights, also after an exception.

    :param steps: the gradient steps of an epoch
    :param evaluate: a function that returns the holdout errors that ``best`` compares; it is called after every round
    :param best: the store of the best weights
    :param budget: the limits of the fit
    :param progress: a function that is called after every round with a short text: the number of batches and the mean holdout
        error
    :return: ``epochs``, ``batches`` and ``loss``, the mean loss of the last round
    """
    best.update(evaluate())
    epochs = batches = stale = 0
    loss = float("nan")

    def spent() -> bool:
        over = budget.max_epochs is not None and epochs >= budget.max_epochs
        return over or (budget.max_batches is not None and batches >= budget.max_batches)

    try:
        while stale <= budget.patience and not spent():
            losses: list[float] = []
            while len(losses) < MIN_ROUND and not spent():
                for value in steps():
                    losses.append(value)
                    batches += 1
                    if budget.max_batches is not None and batches >= budget.max_batches:
                        break
                epochs += 1
            loss = sum(losses) / len(losses)
            stale = 0 if best.update(evaluate()) else stale + 1
            if progress is not None:
                progress(f"fit {batches}: {best.scores.mean():.2g}")
    finally:
        best.restore()
    return {"epochs": float(epochs), "batches": float(batches), "loss": loss}


def minibatches(n: int, size: int, generator: th.Generator | None) -> Iterator[th.Tensor]:
    """Yield the indices of ``n`` rows in a random order, in batches of ``size``."""
    yield from th.randperm(n, generator=generator).split(size)


def index_transitions(rows: Transitions, index: th.Tensor) -> Transitions:
    """Select rows of transitions."""

    def pick(value: th.Tensor | dict[str, th.Tensor]) -> th.Tensor | dict[str, th.Tensor]:
        return {key: child[index] for key, child in value.items()} if isinstance(value, dict) else value[index]

    return Transitions(*(pick(value) for value in rows))  # type: ignore[arg-type]


def fit_world_model(
    model: WorldModel, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None
) -> dict[str, float]:
    """
    Fit any world model: by its own :meth:`~sb3_mbrl.contracts.WorldModel.fit` if it has one, else by :func:`fit_by_loss`.

    :param model: the world model
    :param data: real data
    :param budget: the limit on epochs and gradient steps
    :param generator: the source of every random choice
    :return: metrics to log
    """
    own = type(model).fit is not WorldModel.fit or not model.learns
    fit = model.fit if own else partial(fit_by_loss, model)
    return fit(data, budget or FitBudget(), generator=generator)


def fit_by_loss(
    model: WorldModel, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None
) -> dict[str, float]:
    """
    Fit a model that has a :meth:`~sb3_mbrl.contracts.WorldModel.loss` and an optimiser.

    Models of single observations (``context == 1``) learn from shuffled transitions, with holdout and early stopping. Models
    with a context are trained on windows of ``2 * context`` steps until the budget's ``max_batches``.

    :param model: a model with an ``optimizer``
    :param data: real data
    :param budget: the limit on epochs and gradient steps
    :param generator: the source of every random choice
    :return: ``loss``, ``epochs``, ``batches``, and, for transitions, ``holdout_loss``
    :raises ValueError: for a model without an optimiser
    """
    budget = budget or FitBudget()
    if model.optimizer is None:
        raise ValueError(
            f"{type(model).__name__} has no optimizer, so the default fit() cannot train it: set self.optimizer, or override "
            "fit(). (An agent that trains its world model together with its policy, as Dreamer does, has taken the optimizer.)"
        )
    if len(data) == 0:
        return {}
    optimizer = model.optimizer

    def update(batch: Transitions | Sequences) -> float:
        optimizer.zero_grad()
        terms = model.loss(batch, generator=generator)
        if not isinstance(terms, Loss):
            raise TypeError(
                f"{type(model).__name__}.loss returned {type(terms).__name__}, expected contracts.Loss. [contract "
                f"v{CONTRACT_VERSION}]\n{CHANGED_IN_2}"
            )
        loss = terms.total()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    # A loss may also draw from torch's global generators; inside the scope these continue the stream of ``generator``.
    random = contextlib.nullcontext() if generator is None else RandomStream.of(generator).scope(model.device)
    model.train()
    try:
        with random:
            metrics = _fit(model, update, data, budget, generator)
    finally:
        model.eval()
    model.fitted = True
    return metrics


Update = Callable[[Transitions | Sequences], float]
"""A function that takes a gradient step on a batch and returns the loss"""


def _fit(model: WorldModel, update: Update, data: Data, budget: FitBudget, generator: th.Generator | None) -> dict[str, float]:
    """Train a model on transitions, or on windows if it has a context."""
    if model.context == 1:
        return _fit_transitions(model, update, *split_rows(data, budget), budget, generator)
    batches = budget.max_batches or 1000
    n = max(1, budget.batch_size // (2 * model.context))
    losses = [update(_windows(model, data, n, generator)) for _ in range(batches)]
    return {"loss": losses[-1], "batches": float(batches), "epochs": 1.0}


def _windows(model: WorldModel, data: Data, n: int, generator: th.Generator | None) -> Sequences:
    """Draw ``n`` windows of consecutive steps; padded ones if there are fewer steps than a window has."""
    length = 2 * model.context
    try:
        return data.sequences(n, length, extra=model.extra, generator=generator)
    except ValueError:
        return data.contexts(n, length, extra=model.extra, generator=generator)


def _fit_transitions(
    model: WorldModel,
    update: Update,
    train: Transitions,
    held_out: Transitions | None,
    budget: FitBudget,
    generator: th.Generator | None,
) -> dict[str, float]:
    """Train a model on shuffled transitions; without held-out rows, early stopping uses the training rows."""
    holdout = train if held_out is None else held_out

    def steps() -> Iterator[float]:
        for index in minibatches(len(train.reward), budget.batch_size, generator):
            yield update(index_transitions(train, index))

    def evaluate() -> th.Tensor:
        model.eval()
        with th.no_grad():
            loss = model.loss(holdout, generator=generator).total()
        model.train()
        return loss.detach().reshape(1)

    best = BestWeights(model.parameters(), 1, budget.min_improvement)
    return {**train_epochs(steps, evaluate, best, budget, model.on_progress), "holdout_loss": float(best.scores)}
