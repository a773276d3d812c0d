"""The nouns of the library: what a world model, a planner and an imagination are.

Everything is batched tensors with the batch ``B`` (``N`` for rows of data) as leading axis.

* **Observations** are raw (never normalised by ``VecNormalize``), in the layout of SB3's replay buffer: ``(B, *shape)`` for
  ``Box`` and
  ``MultiBinary``, ``(B, 1)`` for ``Discrete``, ``(B, n)`` for ``MultiDiscrete``, a dictionary of these for ``Dict``.
* **Actions** are as SB3's replay buffer stores them: ``(B, A)`` floats scaled to [-1, 1] for ``Box``, integers for discrete
  spaces.
* **State** is nested tensors (see :mod:`sb3_mbrl.trees`); callers only index, repeat and stack it.

A world model is an ``nn.Module`` so that its weights are saved with the agent. What no parameter shape tells (stored data,
counters, which members are the best) goes into :meth:`WorldModel.extra_state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_mbrl.checks import number, whole
from sb3_mbrl.specs import (
    CONTRACT_VERSION,
    AlgorithmSpec,
    EnvFunctionsSpec,
    ImaginationSpec,
    PartSpec,
    PlannerSpec,
    Supports,
    WorldModelSpec,
)
from sb3_mbrl.trees import State, tree_leaves

__all__ = [
    "CONTRACT_VERSION",
    "AlgorithmSpec",
    "Data",
    "EnvFunctions",
    "EnvFunctionsSpec",
    "FitBudget",
    "Imagination",
    "ImaginationSpec",
    "Imagined",
    "LatentModel",
    "LatentTrajectory",
    "LearnerView",
    "Loss",
    "MemberPrediction",
    "MissingCapability",
    "Obs",
    "PartSpec",
    "Plan",
    "Planner",
    "PlannerSpec",
    "Prediction",
    "ReplaySampler",
    "RewardFn",
    "RolloutImagination",
    "Sequences",
    "State",
    "Supports",
    "TerminationFn",
    "Timesteps",
    "Transitions",
    "UnsupportedSpace",
    "WorldModel",
    "WorldModelSpec",
    "call_known",
]


Obs = th.Tensor | dict[str, th.Tensor]

RewardFn = Callable[[Obs, th.Tensor, Obs], th.Tensor]
"""``reward_fn(obs, action, next_obs) -> (B,)``: batched, actions in the environment's units."""

TerminationFn = Callable[[Obs, th.Tensor, Obs], th.Tensor]
"""``termination_fn(obs, action, next_obs) -> (B,)`` boolean: batched, actions in the environment's units."""


def call_known(name: str, function: Callable[..., Any], seen: tuple[Obs, th.Tensor, Obs], rows: int) -> th.Tensor:
    """
    What a known function says.

    :param name: of the function, for messages: ``"reward_fn"`` or ``"termination_fn"``
    :param seen: observations, actions in the environment's units, next observations
    :param rows: how many
    :return: ``(rows,)``
    :raises ValueError: for anything but one value per row, in a tensor
    """
    try:
        value = function(*seen)
    except Exception as error:
        error.add_note(f"raised by {name}(obs, action, next_obs) on {rows} rows; {name}=None learns it instead")
        raise
    if not isinstance(value, th.Tensor) or tuple(value.shape) != (rows,):
        got = tuple(value.shape) if isinstance(value, th.Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor of shape ({rows},), one value per row; got {got}")
    return value


@dataclass(frozen=True)
class EnvFunctions:
    """Known functions of one environment; ``None`` where one is not known. Picklable, since the agent saves them."""

    reward_fn: RewardFn | None = None
    termination_fn: TerminationFn | None = None


# ------------------------------------------------------------------------------------------ what parts hand to each other


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
    extra: Mapping[str, th.Tensor] = {}
    """By name, ``(N, L, ...)``: values of the side store that were asked for (replay latents, priorities, search policies)"""
    ids: th.Tensor | None = None
    """``(N, L)`` integers: where each step is stored (see :meth:`Data.row_ids`)"""


class Timesteps(NamedTuple):
    """
    Windows of consecutive observations, ``(N, L, ...)``, each with the action and the reward that led to it.

    SB3 stores ``(obs, action, reward, next_obs)``. Here the last observation of an episode has a row of its own, without
    which a latent model would never see where episodes end (``TimeStep`` of dm_env).
    """

    obs: Obs
    action: th.Tensor
    """``(N, L, A)``: the action before the observation; zeros where an episode begins"""
    reward: th.Tensor
    """``(N, L)``: the reward of that action; 0 where an episode begins"""
    is_first: th.Tensor
    """``(N, L)`` booleans: an episode begins here, or nothing is known of the steps before"""
    is_last: th.Tensor
    """``(N, L)`` booleans: the episode is over, by termination or by a time limit"""
    terminated: th.Tensor
    """``(N, L)`` floats, 0 or 1: the episode is over by termination"""


class Loss(NamedTuple):
    """
    The training loss of a batch, term by term. All entries are tensors: a float would wait for the accelerator.

    The loss to minimise is :meth:`total`: the weighted sum of the means of all terms.
    """

    rows: Mapping[str, th.Tensor] = {}
    """Terms with one value per row, ``(B,)`` or ``(B, T)``, from which priorities can be computed"""
    scalars: Mapping[str, th.Tensor] = {}
    """Terms of the whole batch (regularisers), scalars"""
    weights: Mapping[str, float] = {}
    """The weight of each term; 1 where it is missing"""
    states: State | None = None
    """``(B, T, ...)``: the states that the loss has filtered, for models of sequences"""
    figures: Mapping[str, th.Tensor] = {}
    """Metrics to log, scalars without gradients"""

    def total(self, row_weights: th.Tensor | None = None) -> th.Tensor:
        """
        Compute the scalar to minimise: the sum over all terms of ``weight * mean(row_weights * term)``.

        :param row_weights: importance weights of the rows (prioritised replay): ``(B,)``, or ``(B, T)`` where all terms of the
            rows have steps; terms of the whole batch have none
        """
        rows = self.rows
        if row_weights is not None:  # (B,) weights count for all T entries of a term (B, T)
            shapes = {name: (*row_weights.shape, *[1] * (value.dim() - row_weights.dim())) for name, value in rows.items()}
            rows = {name: value * row_weights.view(shapes[name]) for name, value in rows.items()}
        terms = {**{name: value.mean() for name, value in rows.items()}, **self.scalars}
        return th.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()


class LatentTrajectory(NamedTuple):
    """``H`` imagined steps from ``B`` latent states, which are the first of ``H + 1`` states."""

    features: th.Tensor
    """``(B, H + 1, F)``: what actor and critic see"""
    state: State
    """``(B, H + 1, ...)``"""
    action: th.Tensor
    """``(B, H, A)``: the actions taken in all states but the last"""
    reward: th.Tensor
    """``(B, H + 1)``: the reward of arriving in each state"""
    discount: th.Tensor
    """``(B, H + 1)``: the discount of each state, 0 where an episode is over"""


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
        """Return the number of usable transitions."""

    def transitions(self, n: int | None = None, *, generator: th.Generator | None = None) -> Transitions:
        """Return ``n`` rows, drawn uniformly with replacement, or all of them, oldest first."""

    def sequences(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """
        Return ``n`` windows of ``length`` consecutive steps. A window may run across the end of an episode (see ``is_first``).

        :param extra: the names of values of the side store that are wanted in :attr:`Sequences.extra`
        """

    def contexts(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """
        Return ``n`` windows that end in a usable start state, padded on the left with the first step of the episode (see
        ``is_first``).

        :param extra: as of :meth:`sequences`
        """

    def row_ids(self) -> th.Tensor:
        """Return ``(len,)`` integers: where each row of :meth:`transitions` is stored, oldest first."""

    def episode_starts(self) -> th.Tensor:
        """Return those of :meth:`row_ids` that begin an episode, oldest first."""

    def held_out(self) -> "Data | None":
        """
        Return the rows that were held out of this data, by which the model will be judged: for early stopping and for choosing
        among members only, never for gradients, and never to be stored.

        ``None`` where nothing was held out: there are too few rows, or the fit was not called by an agent.
        """


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
    :param max_holdout: the number of rows held out at most
    :param refit: whether an agent fits the model on all rows, the held-out ones too, once it has been judged. Later fits then
        judge it by the steps since the last one, before it learns from them
    """

    max_epochs: int | None = None
    max_batches: int | None = 1000
    patience: int = 5
    min_improvement: float = 0.01
    batch_size: int = 256
    holdout_ratio: float = 0.2
    max_holdout: int = 5000
    refit: bool = False

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
        if not isinstance(self.refit, bool):
            raise ValueError(f"FitBudget: refit={self.refit!r}: give True or False")


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
    """Metrics to log"""
    weight: th.Tensor | None = None
    """``(T, B)``, from 0: rows are drawn with probability proportional to it; ``None``: all alike"""


# ---------------------------------------------------------------------------------------------------- world models


class UnsupportedSpace(ValueError):
    """A part was asked for by name for spaces it does not take. The message names one that does, where there is one."""


class MissingCapability(TypeError):
    """A part was asked for something optional that it does not have (``decode``, ``members``, ...)."""


class WorldModel(nn.Module, ABC):
    """
    An environment in tensors.

    Subclasses implement :meth:`initial` and :meth:`step`, and either :meth:`loss` or :meth:`fit`. A model that imagined data
    for a model-free learner is drawn from also needs :meth:`decode`.

    :param observation_space: the real environment's, as SB3 sees it
    :param action_space: the real environment's
    :param reward_fn: known reward; replaces the learned head
    :param termination_fn: known termination; replaces the learned head
    :param device: as in SB3
    """

    context: int = 1
    """How many past steps :meth:`filter` wants before a start state (1: the observation alone)."""

    needs_snapshot: ClassVar[bool] = False
    """Whether :meth:`initial` needs the true environment's state (an oracle); the agent then keeps one with every real row."""

    holds_out: ClassVar[bool] = True
    """
    Whether :meth:`fit` can learn from a part of the data. A model that cannot (it counts every step as it comes) is judged by
    new steps before it learns from them.
    """

    fitted: bool = False
    """Whether the model has been fitted (known models: always true)."""

    discount: float | None = None
    """
    The discount of a step, where it is part of what the model predicts (:attr:`Prediction.discount`). An agent with another
    ``gamma`` refuses the model.
    """

    extra: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """
    The values of the side store that :meth:`loss` reads from :attr:`Sequences.extra`: by name, the shape of the value of one
    step.
    """

    optimizer: th.optim.Optimizer | None = None
    """The model's own optimiser, saved with it; ``None`` where there is nothing to optimise."""

    on_progress: Callable[[str], None] | None = None
    """Told in words how far a fit is, where somebody listens (a progress bar)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.reward_fn = reward_fn
        self.termination_fn = termination_fn
        self.device = get_device(device)

    # ---- learning

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit: a known model has neither a :meth:`loss` nor a :meth:`fit` of its own."""
        return type(self).fit is not WorldModel.fit or type(self).loss is not WorldModel.loss

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """
        Compute the training loss of a batch, term by term.

        A model with ``context == 1`` is given :class:`Transitions`, another one :class:`Sequences`.

        :param batch: ``(B, ...)`` transitions, or ``(B, T, ...)`` windows
        :param start: the states before the first steps of the windows, ``(B, ...)``; ``None`` where nothing is known
        :param generator: the source of randomness (``None``: torch's global one)
        :return: terms with one value per row; the states ``(B, T, ...)`` where the model filters windows
        """
        raise MissingCapability(f"{type(self).__name__} has no loss; it is fitted by its own fit() or not at all")

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Learn from real data. Optional: a model with a :meth:`loss` is fitted by the loop of
        :func:`sb3_mbrl.fitting.fit_world_model`, which works for every model.

        An interrupted fit leaves the model as good as the best point it had reached.

        :param data: a view on the replay buffer, without the held-out rows (see :meth:`Data.held_out`)
        :param budget: the limit on epochs and gradient steps
        :param generator: the source of every random choice
        :return: metrics to log (``loss``, ``epochs``, ``batches``, ...)
        :raises MissingCapability: where the model has no fit of its own
        """
        name = type(self).__name__
        remedy = "it is known, so there is nothing to fit"
        if self.learns:
            remedy = "it has a loss: call sb3_mbrl.fitting.fit_world_model(model, data), which works for every world model"
        raise MissingCapability(f"{name} has no fit() of its own; {remedy}")

    # ---- states

    @abstractmethod
    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        """
        The state from one observation.

        :param obs: ``(B, ...)``
        :param snapshot: the true environment's state, ``(B, S)``, for an oracle
        """

    def filter(self, obs: Obs, actions: th.Tensor, is_first: th.Tensor) -> State:
        """
        The state after a context of :attr:`context` steps. The default looks at the last observation only.

        :param obs: ``(B, context, ...)``, the last one is the present
        :param actions: ``(B, context, A)``: ``actions[:, t]`` was taken in ``obs[:, t]``; the last one is not known yet and
            ignored
        :param is_first: ``(B, context)``: what lies before a true entry belongs to another episode and must not be looked at
        """
        return self.initial({key: value[:, -1] for key, value in obs.items()} if isinstance(obs, dict) else obs[:, -1])

    def observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        """
        One filtering step while acting in the real environment. The default looks at the new observation only.

        :param state: the state before, ``(B, ...)``
        :param action: ``(B, A)``, taken in that state
        :param obs: what was observed then
        :param is_first: ``(B,)``: rows that begin a new episode with ``obs``
        """
        return self.initial(obs)

    @abstractmethod
    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """
        One step. Differentiable with respect to state, action and parameters where the model is.

        :param state: ``(B, ...)``
        :param action: ``(B, A)``, scaled
        :param deterministic: the mean (or mode) instead of a sample
        :param generator: the source of randomness (``None``: torch's global one)
        """

    def with_known(
        self, seen: Callable[[], tuple[Obs, th.Tensor, Obs]], reward: th.Tensor, terminated: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Reward and termination, by the known functions where there are any: for :meth:`step`.

        :param seen: makes what these see: observations, actions in the environment's units, next observations; called only
            where something is known
        :param reward: ``(B,)``, as predicted
        :param terminated: ``(B,)``, as predicted
        """
        if self.reward_fn is None and self.termination_fn is None:
            return reward, terminated
        found = seen()
        if self.reward_fn is not None:
            reward = call_known("reward_fn", self.reward_fn, found, len(reward)).to(reward)
        if self.termination_fn is not None:
            terminated = call_known("termination_fn", self.termination_fn, found, len(terminated)).to(terminated)
        return reward, terminated

    @property
    def decodes(self) -> bool:
        """Whether the model has a :meth:`decode` of its own."""
        return type(self).decode is not WorldModel.decode

    def decode(self, state: State) -> Obs:
        """
        Return the observations of states, valid members of the observation space. Optional: a value-equivalent model has none
        (:attr:`decodes`), and is judged by its rewards and terminations alone.
        """
        raise MissingCapability(
            f"{type(self).__name__} does not decode observations. Use it where features are enough "
            "(ModelVecEnv(..., observation='features'), a planner), or choose a model that decodes, such as 'ensemble'."
        )

    def features(self, state: State) -> th.Tensor:
        """``(B, F)``: what a latent policy acts on. The default flattens every leaf of the state."""
        return th.cat(
            [leaf.flatten(1).float() if leaf.dim() > 1 else leaf[:, None].float() for leaf in tree_leaves(state)], dim=1
        )

    # ---- optional capabilities

    def members(self, state: State, action: th.Tensor) -> MemberPrediction:
        """Every member's prediction (moment matching, disagreement). Optional."""
        raise MissingCapability(f"{type(self).__name__} has no members; choose an ensemble")

    @property
    def n_choices(self) -> int:
        """From how many members :meth:`step` chooses (1: there is nothing to choose)."""
        return 1

    def member_step(
        self,
        state: State,
        action: th.Tensor,
        member: th.Tensor,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> Prediction:
        """
        :meth:`step` by given members (trajectory sampling TSinf). Optional.

        :param member: ``(B,)`` integers below :attr:`n_choices`
        """
        raise MissingCapability(f"{type(self).__name__} has no members; choose an ensemble")

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """Policy logits ``(B, n_actions)`` and value ``(B,)`` for tree search. Optional."""
        raise MissingCapability(f"{type(self).__name__} has no policy and value heads")

    # ---- saving

    def extra_state(self) -> dict[str, Any]:
        """
        What the ``state_dict`` does not hold and no parameter shape tells: stored data, counters, the choice of members.

        Saved next to the ``state_dict`` and given back *before* it, so that parameters can be created first. Must be
        picklable. Subclasses extend the dictionary they get from ``super()``.
        """
        return {"fitted": self.fitted}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""
        self.fitted = bool(extra["fitted"])


class LatentModel(WorldModel):
    """
    A world model that a joint learner (Dreamer, TD-MPC2, MuZero) trains together with its policy.

    Joint learners check for this class, never for one model.
    """

    n_features: int
    """The number of columns of :meth:`features`"""
    discount: float
    """The discount of a step, which is part of what the model learns"""

    @abstractmethod
    def loss(
        self, batch: Transitions | Sequences | Timesteps, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """
        Compute the loss of sequences, with the states that were filtered along them.

        :param batch: ``(B, T)`` rows; a model decides which of the records it takes
        :param start: the states before the first rows, ``(B, ...)``; ``None`` where nothing is known
        :param generator: the source of randomness
        """

    @abstractmethod
    def observe_step(
        self,
        state: State | None,
        action: th.Tensor,
        obs: Obs,
        is_first: th.Tensor,
        generator: th.Generator | None = None,
        deterministic: bool = False,
    ) -> State:
        """
        Filter one step, as :meth:`observe` does, with a sample of the posterior.

        :param state: the state before, ``(B, ...)``; ``None``: nothing is known
        :param action: ``(B, A)``: the action that led to the observation
        :param obs: ``(B, ...)``
        :param is_first: ``(B,)``: rows that begin a new episode
        :param deterministic: the most likely state instead of a sample
        """

    @abstractmethod
    def imagine(
        self,
        state: State,
        act: Callable[[th.Tensor], th.Tensor],
        horizon: int,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> LatentTrajectory:
        """
        Follow a policy in latent space; nothing is decoded.

        :param state: ``(B, ...)``
        :param act: from features ``(B, F)`` to scaled actions ``(B, A)``
        :param horizon: the number of steps
        """

    @abstractmethod
    def pack(self, state: State) -> dict[str, th.Tensor]:
        """Turn a state into flat named tensors, as small as they can be, for the side store."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, th.Tensor]) -> State:
        """Undo :meth:`pack`."""

    def head_defaults(self) -> dict[str, Any]:
        """The default settings of actor and critic on these features: ``units`` of a layer, ``norm`` and ``activation``."""
        return {"units": 256, "norm": "rms", "activation": "silu"}

    def value_output(self, **settings: Any) -> Any:
        """
        The output distribution of a critic: by default as the model's rewards are distributed.

        :param settings: other settings of it, such as ``reward_range`` and ``bins``
        """
        raise MissingCapability(f"{type(self).__name__} has no output distribution for a critic (value_output)")

    @property
    @abstractmethod
    def state_layout(self) -> list[Any]:
        """Plain values that describe packed states: only states of the same layout can be read back."""


# ---------------------------------------------------------------------------------------------------------------- planners


class Planner(ABC):
    """
    Chooses actions by looking ahead in a world model. Never imports a model: any that has what the planner needs will do.

    :param action_space: the real environment's
    """

    horizon: int = 1
    """The number of steps that the planner looks ahead"""
    follows_mean: bool = False
    """Whether the planner plans in the model's mean, so that it has no use for particles"""

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    @abstractmethod
    def plan(
        self,
        model: WorldModel,
        state: State,
        carry: State | None,
        *,
        is_first: th.Tensor,
        action_mask: th.Tensor | None = None,
        prior: Callable[[State, th.Generator | None], th.Tensor] | None = None,
        value: Callable[[State], th.Tensor] | None = None,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> Plan:
        """
        Plan for a batch of environments at once.

        :param model: the world model
        :param state: where each environment is, ``(B, ...)``
        :param carry: what the last call returned, or ``None``
        :param is_first: ``(B,)``: rows whose carry must be forgotten
        :param action_mask: ``(B, n_actions)`` booleans, true where an action is allowed
        :param prior: a policy: ``prior(state, generator)`` returns scaled actions ``(B, A)``
        :param value: a value function for the last state of a plan
        :param deterministic: plan the same for the same state and carry: random choices come from a stream that begins anew at
            every call, and ``generator`` is not drawn from
        :param generator: the source of randomness
        """


# ------------------------------------------------------------------------------------------------------------- imagination


class ReplaySampler(Protocol):
    """Anything that answers ``sample`` as SB3's replay buffers do."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        Draw a batch, as ``ReplayBufferSamples`` or ``DictReplayBufferSamples``.

        :param batch_size: the number of rows
        :param env: normalise observations and rewards with these statistics
        """


class LearnerView(NamedTuple):
    """The view of a model-free learner that an imagination works with."""

    world_model: WorldModel
    act: Callable[[Obs], th.Tensor]
    """The policy with its exploration: from raw observations ``(B, ...)`` to scaled actions ``(B, A)``"""
    gamma: float
    """The discount of a step"""
    real_ratio: float
    """The share of real rows in a batch"""
    generator: th.Generator
    """The source of randomness, on the CPU"""
    mix: Callable[[], ReplaySampler | None]
    """Makes the sampler that mixes real rows with stored rollouts; ``None`` while there are no rollouts"""


class Imagination(ABC):
    """
    A rule by which a world model changes the batches that a model-free learner samples.

    Short rollouts that are stored and mixed in are one kind (:class:`RolloutImagination`); value expansion, which edits
    rewards, next observations and discounts of real rows, needs no store.
    """

    @abstractmethod
    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        """
        The sampler that stands in for the replay buffer while the base class trains.

        :param learner: the learner's policy, world model and discount
        :param real: the learner's own replay buffer
        :return: ``None``: the real buffer itself
        """


class RolloutImagination(Imagination):
    """
    An imagination that rolls the policy out from start states, on a schedule, and keeps the rows for a while.

    Shapes are fixed and rollouts that ended are masked, never removed: compilers and CUDA graphs need static shapes.

    :cvar freq: real environment steps between two calls
    :cvar starts_per_step: start states per real environment step
    :cvar max_age: the number of real environment steps after which imagined transitions are forgotten
    :cvar n_steps: the agent joins the single steps that :meth:`imagine` returns to transitions of up to ``n_steps`` steps; all
        actions but the first of a rollout must be the policy's then
    :cvar observation: ``"decoded"``, or ``"features"`` where the rows hold features of latent states
    """

    freq: int
    starts_per_step: float
    max_age: int
    n_steps: int = 1
    observation: str = "decoded"

    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        """Mix the stored rollouts into the real rows."""
        return learner.mix()

    @abstractmethod
    def horizon(self, num_timesteps: int) -> int:
        """The number of steps to imagine after ``num_timesteps`` real environment steps."""

    def choose_starts(self, data: Data, n: int, *, generator: th.Generator | None = None) -> th.Tensor | None:
        """
        Which real observations to start from.

        :param data: the real data
        :param n: the number of start states
        :param generator: the source of randomness
        :return: ``(n,)`` integers out of ``data.row_ids()``, repeated ones allowed; ``None``: uniformly from all there are
        """
        return None

    @abstractmethod
    def imagine(
        self,
        world_model: WorldModel,
        starts: State,
        act: Callable[[Any], th.Tensor],
        horizon: int,
        *,
        generator: th.Generator | None = None,
    ) -> Imagined:
        """
        Roll the world model out.

        :param world_model: the model, in evaluation mode
        :param starts: states to start from, ``(B, ...)`` (states, not observations: a recurrent model has filtered its
            context)
        :param act: the policy: from observations (or features, for latent imaginations) to scaled actions ``(B, A)``
        :param horizon: the number of steps
        :param generator: the source of the model's randomness
        """
