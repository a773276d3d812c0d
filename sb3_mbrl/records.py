"""What parts hand to each other: real data, predictions, plans, imagined transitions. Imported from ``contracts``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch as th

from sb3_mbrl.arguments import number, whole
from sb3_mbrl.specs import Obs
from sb3_mbrl.states import State


class Transitions(NamedTuple):
    """Real one-step transitions, ``N`` rows. Termination is true termination: a time limit is not one."""

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    """The true next observation (the terminal one at the end of an episode, never the reset)."""
    reward: th.Tensor
    """``(N,)``"""
    terminated: th.Tensor
    """``(N,)`` floats, 0 or 1"""


class Sequences(NamedTuple):
    """Windows of consecutive real transitions, ``(N, L, ...)``."""

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    reward: th.Tensor
    """``(N, L)``"""
    terminated: th.Tensor
    """``(N, L)`` floats, 0 or 1"""
    is_first: th.Tensor
    """``(N, L)`` booleans: the first step of an episode, and the first of every window"""
    is_last: th.Tensor
    """``(N, L)`` booleans: the step ends its episode, by termination or by a time limit; the next column is another episode"""


class Prediction(NamedTuple):
    """What :meth:`WorldModel.step` returns."""

    state: State
    reward: th.Tensor
    """``(B,)``"""
    terminated: th.Tensor
    """``(B,)``: the probability that the step ended the episode"""
    discount: th.Tensor | None = None
    """``(B,)``, optional: replaces ``gamma * (1 - terminated)`` (two players: ``-gamma``)"""


class MemberPrediction(NamedTuple):
    """What :meth:`WorldModel.members` returns: every member's view of one step, in the units of encoded observations."""

    mean: th.Tensor
    """``(E, B, D)``: the next observation"""
    variance: th.Tensor
    """``(E, B, D)``"""
    reward: th.Tensor
    """``(E, B)``"""
    terminated: th.Tensor
    """``(E, B)``: probability"""


class Data(Protocol):
    """A view on real data, served from SB3's own replay buffer (:class:`sb3_mbrl.buffers.ReplayData`)."""

    def __len__(self) -> int:
        """The number of usable transitions."""

    def transitions(self, n: int | None = None, *, generator: th.Generator | None = None) -> Transitions:
        """``n`` rows drawn uniformly with replacement, or all of them, oldest first."""

    def sequences(self, n: int, length: int, *, generator: th.Generator | None = None) -> Sequences:
        """``n`` windows of ``length`` consecutive steps; a window may run across the end of an episode (see ``is_first``)."""

    def contexts(self, n: int, length: int, *, generator: th.Generator | None = None) -> Sequences:
        """
        ``n`` windows that end in a usable start state, padded on the left with the first step of the episode (see
        ``is_first``).
        """

    def row_ids(self) -> th.Tensor:
        """``(len,)`` integers: where each row of :meth:`transitions` is stored, oldest first."""

    def episode_starts(self) -> th.Tensor:
        """Those of :meth:`row_ids` that begin an episode, oldest first."""


@dataclass(frozen=True)
class FitBudget:
    """
    How long a call to :meth:`WorldModel.fit` may take: in batches or epochs, never in seconds, so that a seed decides the run.

    :param max_epochs: passes over the training data (``None``: until ``patience`` is used up)
    :param max_batches: gradient steps (``None``: no limit, as in MBPO's code, where a fit may take thousands)
    :param patience: stop after more than this many rounds in which no member improved on the holdout data; a round is an
        epoch, or as many as make 32 gradient steps
    :param min_improvement: the relative fall of the holdout error that counts as an improvement
    :param batch_size: rows per gradient step (per member)
    :param holdout_ratio: share of the data held out to stop early and to choose members
    :param max_holdout: rows held out at most
    """

    max_epochs: int | None = None
    max_batches: int | None = 1000
    patience: int = 5
    min_improvement: float = 0.01
    batch_size: int = 256
    holdout_ratio: float = 0.2
    max_holdout: int = 5000

    def __post_init__(self) -> None:
        for name, low in (("max_epochs", 1), ("max_batches", 1), ("patience", 0), ("batch_size", 1), ("max_holdout", 0)):
            value = getattr(self, name)
            if value is not None or name not in ("max_epochs", "max_batches"):  # None: no limit
                object.__setattr__(self, name, whole(f"FitBudget: {name}", value, low))
        object.__setattr__(self, "min_improvement", number("FitBudget: min_improvement", self.min_improvement, 0.0, 1.0))
        ratio = number("FitBudget: holdout_ratio", self.holdout_ratio, 0.0, 1.0)
        if ratio == 1.0:
            raise ValueError("FitBudget: holdout_ratio=1.0: nothing would be left to learn from; give less than 1")
        object.__setattr__(self, "holdout_ratio", ratio)


class Plan(NamedTuple):
    """What :meth:`Planner.plan` returns."""

    action: th.Tensor
    """``(B, A)``: what to do now, scaled"""
    carry: State
    """
    The warm start for the next call, one row per environment. It belongs to the caller: evaluation and training have their
    own.
    """
    sequence: th.Tensor | None = None
    """``(B, H, A)``: the whole plan"""
    policy: th.Tensor | None = None
    """``(B, n_actions)``: improved policy (tree search)"""
    value: th.Tensor | None = None
    """``(B,)``: value of the root (tree search) or of the plan"""
    info: Mapping[str, Any] = {}


class Imagined(NamedTuple):
    """
    Imagined transitions, ``(T, B, ...)``: ``T`` steps from ``B`` start states. Rows that are not ``valid`` hold no
    information.
    """

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    reward: th.Tensor
    """``(T, B)``"""
    terminated: th.Tensor
    """``(T, B)`` floats, 0 or 1"""
    discount: th.Tensor | None
    """``(T, B)``, where the model gives one"""
    valid: th.Tensor
    """``(T, B)`` booleans: the rollout was still running and the row is finite"""
    info: Mapping[str, float] = {}
    """Figures to log"""
