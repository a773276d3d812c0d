"""The contract of the library: world models, planners, imaginations, and the records that they exchange.

Everything is batched tensors with the batch ``B`` (``N`` for rows of data) as leading axis.

* **Observations** are raw (never normalised by ``VecNormalize``), in the layout of SB3's replay buffer: ``(B, *shape)`` for
  ``Box`` and ``MultiBinary``, ``(B, 1)`` for ``Discrete``, ``(B, n)`` for ``MultiDiscrete``, a dictionary of these for
  ``Dict``.
* **Actions** are as SB3's replay buffer stores them: ``(B, A)`` floats scaled to [-1, 1] for ``Box``, integers for discrete
  spaces.
* **State** is nested tensors (see :mod:`sb3_mbrl.trees`); callers only index, repeat and stack it.

A world model is an ``nn.Module`` so that its weights are saved with the agent. State beside the weights (stored data,
counters, the choice of the best members) goes into :meth:`WorldModel.extra_state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

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


def call_known(name: str, function: Callable[..., Any], arguments: tuple[Obs, th.Tensor, Obs], rows: int) -> th.Tensor:
    """
    Call a known reward or termination function and check the shape of its result.

    :param name: the name of the function in messages: ``"reward_fn"`` or ``"termination_fn"``
    :param function: the function
    :param arguments: observations, actions in the environment's units, next observations
    :param rows: the number of rows
    :return: the function's result, ``(rows,)``
    :raises ValueError: when the result is not a tensor with one value per row
    """
    try:
        value = function(*arguments)
    except Exception as error:
        error.add_note(f"raised by {name}(obs, action, next_obs) on {rows} rows; {name}=None learns it instead")
        raise
    if not isinstance(value, th.Tensor) or tuple(value.shape) != (rows,):
        got = tuple(value.shape) if isinstance(value, th.Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor of shape ({rows},), one value per row; got {got}")
    return value


@dataclass(frozen=True)
class EnvFunctions:
    """
    The known functions of one environment. They are picklable, since the agent saves them.

    :param reward_fn: the reward function; ``None``: not known
    :param termination_fn: the termination function; ``None``: not known
    """

    reward_fn: RewardFn | None = None
    termination_fn: TerminationFn | None = None


# ----------------------------------------------------------------------------------------- records that parts exchange


class Transitions(NamedTuple):
    """
    Real one-step transitions, ``N`` rows.

    :param obs: the observations before the steps, ``(N, ...)``
    :param action: the actions, ``(N, A)``, scaled
    :param next_obs: the true next observations, ``(N, ...)`` (the terminal one at the end of an episode, never the reset)
    :param reward: the rewards, ``(N,)``
    :param terminated: whether the episode terminated, ``(N,)`` floats, 0 or 1; a time limit is no termination
    """

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    reward: th.Tensor
    terminated: th.Tensor


class Sequences(NamedTuple):
    """
    Windows of consecutive real transitions, ``(N, L, ...)``.

    :param obs: the observations before the steps, ``(N, L, ...)``
    :param action: the actions, ``(N, L, A)``, scaled
    :param next_obs: the true next observations, ``(N, L, ...)``
    :param reward: the rewards, ``(N, L)``
    :param terminated: whether the episode terminated, ``(N, L)`` floats, 0 or 1
    :param is_first: ``(N, L)`` booleans: the first step of an episode, and the first of every window
    :param is_last: ``(N, L)`` booleans: the step ends its episode, by termination or by a time limit, so that the next column
        belongs to another episode
    :param extra: the requested values of the side store by name, ``(N, L, ...)`` (replay latents, priorities, search policies)
    :param ids: the id of the stored row of each step, ``(N, L)`` integers (see :meth:`Data.row_ids`)
    """

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    reward: th.Tensor
    terminated: th.Tensor
    is_first: th.Tensor
    is_last: th.Tensor
    extra: Mapping[str, th.Tensor] = {}
    ids: th.Tensor | None = None


class Timesteps(NamedTuple):
    """
    Windows of consecutive observations, ``(N, L, ...)``, each with the action and the reward that led to it.

    SB3 stores ``(obs, action, reward, next_obs)``. Here the last observation of an episode has a row of its own, without
    which a latent model would never see where episodes end (``TimeStep`` of dm_env).

    :param obs: the observations, ``(N, L, ...)``
    :param action: the action before each observation, ``(N, L, A)``; zeros where an episode begins
    :param reward: the reward of that action, ``(N, L)``; 0 where an episode begins
    :param is_first: ``(N, L)`` booleans: an episode begins here, or nothing is known of the steps before
    :param is_last: ``(N, L)`` booleans: the episode is over, by termination or by a time limit
    :param terminated: ``(N, L)`` floats, 0 or 1: the episode is over by termination
    """

    obs: Obs
    action: th.Tensor
    reward: th.Tensor
    is_first: th.Tensor
    is_last: th.Tensor
    terminated: th.Tensor


class _LossFields(NamedTuple):
    """The fields of a :class:`Loss`, which checks the names that it is given."""

    rows: Mapping[str, th.Tensor]
    scalars: Mapping[str, th.Tensor]
    weights: Mapping[str, float]
    states: State | None
    metrics: Mapping[str, th.Tensor]


class Loss(_LossFields):
    """
    The training loss of a batch, term by term. All entries are tensors: a float would wait for the accelerator.

    The loss to minimise is :meth:`total`: the weighted sum of the means of all terms.

    :param rows: the terms with one value per row, ``(B,)`` or ``(B, T)``, from which priorities can be computed
    :param scalars: the terms of the whole batch (regularisers), scalars
    :param weights: the weight of each term; 1 where it is missing
    :param states: the states that the loss has filtered, ``(B, T, ...)``, for models of sequences
    :param metrics: the metrics to log, scalars without gradients
    """

    __slots__ = ()

    def __new__(
        cls,
        rows: Mapping[str, th.Tensor] = {},
        scalars: Mapping[str, th.Tensor] = {},
        weights: Mapping[str, float] = {},
        states: State | None = None,
        metrics: Mapping[str, th.Tensor] = {},
        **unknown: Any,
    ) -> Self:
        if "figures" in unknown:
            raise TypeError("Loss(figures=...): this field is called metrics now, so give Loss(metrics=...)")
        if unknown:
            raise TypeError(f"Loss does not take {next(iter(unknown))!r}; it takes {', '.join(_LossFields._fields)}")
        return super().__new__(cls, rows, scalars, weights, states, metrics)

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
    """
    A trajectory of ``H`` imagined steps from each of ``B`` latent states, which are the first of ``H + 1`` states.

    :param features: the inputs of actor and critic, ``(B, H + 1, F)``
    :param state: the latent states, ``(B, H + 1, ...)``
    :param action: the actions taken in all states but the last, ``(B, H, A)``
    :param reward: the reward of arriving in each state, ``(B, H + 1)``
    :param discount: the discount of each state, ``(B, H + 1)``; 0 where an episode is over
    """

    features: th.Tensor
    state: State
    action: th.Tensor
    reward: th.Tensor
    discount: th.Tensor


class Prediction(NamedTuple):
    """
    A prediction of :meth:`WorldModel.step`.

    :param state: the next states, ``(B, ...)``
    :param reward: the rewards, ``(B,)``
    :param terminated: the probability that the step ended the episode, ``(B,)``
    :param discount: the discount of the next state's value, ``(B,)``: replaces ``gamma * (1 - terminated)`` (two players:
        ``-gamma``); ``None``: the caller's ``gamma`` applies
    """

    state: State
    reward: th.Tensor
    terminated: th.Tensor
    discount: th.Tensor | None = None


class MemberPrediction(NamedTuple):
    """
    The predictions of one step by every member of an ensemble (:meth:`WorldModel.members`), in the units of encoded
    observations.

    :param mean: the means of the next observations, ``(E, B, D)``
    :param variance: the variances of the next observations, ``(E, B, D)``
    :param reward: the rewards, ``(E, B)``
    :param terminated: the probabilities of termination, ``(E, B)``
    """

    mean: th.Tensor
    variance: th.Tensor
    reward: th.Tensor
    terminated: th.Tensor


class Data(Protocol):
    """A view of real data, served from SB3's own replay buffer (:class:`sb3_mbrl.buffers.ReplayData`)."""

    def __len__(self) -> int:
        """Return the number of usable transitions."""

    def transitions(self, n: int | None = None, *, generator: th.Generator | None = None) -> Transitions:
        """Return ``n`` rows, drawn uniformly with replacement, or all of them, oldest first."""

    def sequences(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """
        Return ``n`` windows of ``length`` consecutive steps. A window may run across the end of an episode (see ``is_first``).

        :param n: the number of windows
        :param length: the number of steps in a window
        :param extra: the names of the requested values, which :attr:`Sequences.extra` then holds
        :param generator: the source of randomness
        """

    def contexts(self, n: int, length: int, *, extra: Iterable[str] = (), generator: th.Generator | None = None) -> Sequences:
        """
        Return ``n`` windows that end in a usable start state, padded on the left with the first step of the episode (see
        ``is_first``).

        :param n: the number of windows
        :param length: the number of steps in a window
        :param extra: the names of the requested values, as in :meth:`sequences`
        :param generator: the source of randomness
        """

    def row_ids(self) -> th.Tensor:
        """Return the id of each stored row of :meth:`transitions`, ``(len,)`` integers, oldest first."""

    def episode_starts(self) -> th.Tensor:
        """Return those :meth:`row_ids` that begin an episode, oldest first."""

    def held_out(self) -> "Data | None":
        """
        Return the held-out rows, on which the model will be evaluated: for early stopping and for choosing among members only,
        never for gradients, and never to be stored.

        The result is ``None`` if nothing was held out: there are too few rows, or the fit was not called by an agent.
        """


@dataclass(frozen=True)
class FitBudget:
    """
    The limits of a call to :meth:`WorldModel.fit`, in batches or epochs, never in seconds, so that a seed decides the run.

    :param max_epochs: the largest number of passes over the training data (``None``: until ``patience`` is used up)
    :param max_batches: the largest number of gradient steps (``None``: no limit, as in MBPO's code, where a fit may take
        thousands)
    :param patience: the number of rounds without an improvement of any member on the held-out data that a fit tolerates; a
        round is an epoch, or as many epochs as make 32 gradient steps
    :param min_improvement: the relative fall of the error on held-out data that counts as an improvement
    :param batch_size: the number of rows per gradient step (and member)
    :param holdout_ratio: the share of the data that is held out to stop early and to choose members
    :param max_holdout: the largest number of held-out rows
    :param refit: whether an agent fits the model on all rows, the held-out ones too, once it has been evaluated. Later fits
        then evaluate it on the steps since the last one, before it learns from them
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
    """
    A result of :meth:`Planner.plan`.

    :param action: the actions to take now, ``(B, A)``, scaled
    :param carry: the warm start for the next call, one row per environment. It belongs to the caller: evaluation and training
        each have their own
    :param sequence: the whole plan, ``(B, H, A)``
    :param policy: the improved policy (tree search), ``(B, n_actions)``
    :param value: the value of the root (tree search) or of the plan, ``(B,)``
    :param info: metrics to log
    """

    action: th.Tensor
    carry: State
    sequence: th.Tensor | None = None
    policy: th.Tensor | None = None
    value: th.Tensor | None = None
    info: Mapping[str, Any] = {}


class Imagined(NamedTuple):
    """
    Imagined transitions, ``(T, B, ...)``: ``T`` steps from ``B`` start states. Rows that are not ``valid`` hold no
    information.

    :param obs: the observations before the steps, ``(T, B, ...)``
    :param action: the actions, ``(T, B, A)``, scaled
    :param next_obs: the next observations, ``(T, B, ...)``
    :param reward: the rewards, ``(T, B)``
    :param terminated: whether the rollout terminated, ``(T, B)`` floats, 0 or 1
    :param discount: the discounts that the model predicts, ``(T, B)``; ``None``: it predicts none
    :param valid: ``(T, B)`` booleans: the rollout was still running and the row is finite
    :param info: metrics to log
    :param weight: weights from 0, ``(T, B)``: rows are drawn with probability proportional to them; ``None``: all alike
    """

    obs: Obs
    action: th.Tensor
    next_obs: Obs
    reward: th.Tensor
    terminated: th.Tensor
    discount: th.Tensor | None
    valid: th.Tensor
    info: Mapping[str, float] = {}
    weight: th.Tensor | None = None


# ---------------------------------------------------------------------------------------------------- world models


class UnsupportedSpace(ValueError):
    """The error for spaces that a part does not take. The message names a part that takes them, if there is one."""


class MissingCapability(TypeError):
    """The error for an optional capability that a part lacks (``decode``, ``members``, ...)."""


class WorldModel(nn.Module, ABC):
    """
    An environment in tensors.

    Subclasses implement :meth:`initial` and :meth:`step`, and either :meth:`loss` or :meth:`fit`. A model that provides
    imagined data for a model-free learner also needs :meth:`decode`.

    :param observation_space: the observation space of the real environment, as SB3 sees it
    :param action_space: the action space of the real environment
    :param reward_fn: a known reward function, which replaces the learned head
    :param termination_fn: a known termination function, which replaces the learned head
    :param device: the device, as in SB3
    """

    context: int = 1
    """The number of steps that :meth:`filter` needs for a state (1: the observation alone)"""

    needs_snapshot: ClassVar[bool] = False
    """Whether :meth:`initial` needs the true environment's state (an oracle); the agent then stores it with every real row"""

    holds_out: ClassVar[bool] = True
    """
    Whether :meth:`fit` can learn from a part of the data. A model that cannot (one that counts every step as it comes) is
    evaluated on new steps before it learns from them
    """

    fitted: bool = False
    """Whether the model has been fitted (known models: always true)"""

    discount: float | None = None
    """
    The discount of a step, for models that predict it (:attr:`Prediction.discount`); an agent with another ``gamma`` refuses
    the model. ``None``: the model predicts no discount
    """

    extra: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """
    The values of the side store that :meth:`loss` reads from :attr:`Sequences.extra`: the shape of the value of one step, by
    name
    """

    optimizer: th.optim.Optimizer | None = None
    """The model's own optimiser, saved with it; ``None``: there is nothing to optimise"""

    on_progress: Callable[[str], None] | None = None
    """A callback that receives the progress of a fit in words (for a progress bar), or ``None``"""

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
        """Whether there is anything to fit: a known model has neither a :meth:`loss` nor a :meth:`fit` of its own"""
        return type(self).fit is not WorldModel.fit or type(self).loss is not WorldModel.loss

    def loss(
        self, batch: Transitions | Sequences, start: State | None = None, *, generator: th.Generator | None = None
    ) -> Loss:
        """
        Compute the training loss of a batch, term by term.

        A model with ``context == 1`` is given :class:`Transitions`, another one :class:`Sequences`.

        :param batch: ``(B, ...)`` transitions, or ``(B, T, ...)`` windows
        :param start: the states before the first steps of the windows, ``(B, ...)``; ``None``: not known
        :param generator: the source of randomness (``None``: torch's global one)
        :return: the terms, with one value per row where possible, and the states ``(B, T, ...)`` if the model filters windows
        """
        raise MissingCapability(f"{type(self).__name__} has no loss; it is fitted by its own fit() or not at all")

    def fit(self, data: Data, budget: FitBudget | None = None, *, generator: th.Generator | None = None) -> dict[str, float]:
        """
        Learn from real data. Optional: a model with a :meth:`loss` is fitted by the loop of
        :func:`sb3_mbrl.fitting.fit_world_model`, which works for every model.

        An interrupted fit leaves the model as good as at its best point so far.

        :param data: a view of the replay buffer, without the held-out rows (see :meth:`Data.held_out`)
        :param budget: the limit on epochs and gradient steps
        :param generator: the source of every random choice
        :return: metrics to log (``loss``, ``epochs``, ``batches``, ...)
        :raises MissingCapability: when the model has no fit of its own
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
        Make the state from one observation.

        :param obs: the observations, ``(B, ...)``
        :param snapshot: the state of the true environment, ``(B, S)``, for an oracle
        """

    def filter(self, obs: Obs, actions: th.Tensor, is_first: th.Tensor) -> State:
        """
        Make the state after a context of :attr:`context` steps. The default uses the last observation only.

        :param obs: the observations, ``(B, context, ...)``; the last one is the present
        :param actions: the actions, ``(B, context, A)``: ``actions[:, t]`` was taken in ``obs[:, t]``; the last one is not
            known yet and must be ignored
        :param is_first: ``(B, context)`` booleans: steps before a true entry belong to another episode and must be ignored
        """
        return self.initial({key: value[:, -1] for key, value in obs.items()} if isinstance(obs, dict) else obs[:, -1])

    def observe(self, state: State, action: th.Tensor, obs: Obs, is_first: th.Tensor) -> State:
        """
        Filter one step while acting in the real environment. The default uses the new observation only.

        :param state: the state before, ``(B, ...)``
        :param action: the actions taken in that state, ``(B, A)``, scaled
        :param obs: the observations after the step, ``(B, ...)``
        :param is_first: ``(B,)`` booleans: rows that begin a new episode with ``obs``
        """
        return self.initial(obs)

    @abstractmethod
    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """
        Predict one step. Differentiable with respect to state, action and parameters if the model is.

        :param state: the states, ``(B, ...)``
        :param action: the actions, ``(B, A)``, scaled
        :param deterministic: whether to predict the mean (or mode) instead of a sample
        :param generator: the source of randomness (``None``: torch's global one)
        """

    def with_known(
        self, make_arguments: Callable[[], tuple[Obs, th.Tensor, Obs]], reward: th.Tensor, terminated: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Replace predicted rewards and terminations by those of the known functions, if there are any: for :meth:`step`.

        :param make_arguments: a function that makes the arguments of the known functions: observations, actions in the
            environment's units, next observations; called only if there is a known function
        :param reward: the predicted rewards, ``(B,)``
        :param terminated: the predicted probabilities of termination, ``(B,)``
        :return: the rewards and the terminations, ``(B,)`` each
        """
        if self.reward_fn is None and self.termination_fn is None:
            return reward, terminated
        arguments = make_arguments()
        if self.reward_fn is not None:
            reward = call_known("reward_fn", self.reward_fn, arguments, len(reward)).to(reward)
        if self.termination_fn is not None:
            terminated = call_known("termination_fn", self.termination_fn, arguments, len(terminated)).to(terminated)
        return reward, terminated

    @property
    def decodes(self) -> bool:
        """Whether the model has a :meth:`decode` of its own"""
        return type(self).decode is not WorldModel.decode

    def decode(self, state: State) -> Obs:
        """
        Return the observations of states, valid members of the observation space. Optional: a value-equivalent model has none
        (:attr:`decodes`), and is evaluated by its rewards and terminations alone.
        """
        raise MissingCapability(
            f"{type(self).__name__} does not decode observations. Use it where features are enough "
            "(ModelVecEnv(..., observation='features'), a planner), or choose a model that decodes, such as 'ensemble'."
        )

    def features(self, state: State) -> th.Tensor:
        """Return the inputs of a latent policy, ``(B, F)``. The default flattens every leaf of the state."""
        return th.cat(
            [leaf.flatten(1).float() if leaf.dim() > 1 else leaf[:, None].float() for leaf in tree_leaves(state)], dim=1
        )

    # ---- optional capabilities

    def members(self, state: State, action: th.Tensor) -> MemberPrediction:
        """Return every member's prediction (moment matching, disagreement). Optional."""
        raise MissingCapability(f"{type(self).__name__} has no members; choose an ensemble")

    @property
    def n_choices(self) -> int:
        """The number of members from which :meth:`step` chooses (1: there is nothing to choose)"""
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
        Predict one step by given members (trajectory sampling TSinf). Optional.

        :param state: the states, ``(B, ...)``
        :param action: the actions, ``(B, A)``, scaled
        :param member: the index of each row's member, ``(B,)`` integers below :attr:`n_choices`
        :param deterministic: whether to predict the mean (or mode) instead of a sample
        :param generator: the source of randomness (``None``: torch's global one)
        """
        raise MissingCapability(f"{type(self).__name__} has no members; choose an ensemble")

    def policy_value(self, state: State) -> tuple[th.Tensor, th.Tensor]:
        """Return policy logits ``(B, n_actions)`` and values ``(B,)`` for tree search. Optional."""
        raise MissingCapability(f"{type(self).__name__} has no policy and value heads")

    # ---- saving

    def extra_state(self) -> dict[str, Any]:
        """
        Return all state that the ``state_dict`` does not hold: stored data, counters, the choice of members.

        It is saved next to the ``state_dict`` and given back *before* it, so that parameters can be created first. It must be
        picklable. Subclasses extend the dictionary of ``super()``.
        """
        return {"fitted": self.fitted}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`extra_state`."""
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
        :param start: the states before the first rows, ``(B, ...)``; ``None``: not known
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

        :param state: the state before, ``(B, ...)``; ``None``: not known
        :param action: the actions that led to the observations, ``(B, A)``, scaled
        :param obs: the observations, ``(B, ...)``
        :param is_first: ``(B,)`` booleans: rows that begin a new episode
        :param generator: the source of randomness
        :param deterministic: whether to take the most likely state instead of a sample
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

        :param state: the states to start from, ``(B, ...)``
        :param act: the policy: a function from features ``(B, F)`` to scaled actions ``(B, A)``
        :param horizon: the number of steps
        :param deterministic: whether the model predicts its most likely states instead of samples
        :param generator: the source of randomness
        """

    @abstractmethod
    def pack(self, state: State) -> dict[str, th.Tensor]:
        """Turn a state into flat named tensors, as small as they can be, for the side store."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, th.Tensor]) -> State:
        """Undo :meth:`pack`."""

    def head_defaults(self) -> dict[str, Any]:
        """Return the default settings of actor and critic on these features: ``units``, ``norm`` and ``activation``."""
        return {"units": 256, "norm": "rms", "activation": "silu"}

    def value_output(self, **settings: Any) -> Any:
        """
        Make the output distribution of a critic, by default like that of the model's rewards.

        :param settings: settings that differ from the rewards', such as ``reward_range`` and ``bins``
        """
        raise MissingCapability(f"{type(self).__name__} has no output distribution for a critic (value_output)")

    @property
    @abstractmethod
    def state_layout(self) -> list[Any]:
        """Plain values that describe packed states; only states of the same layout can be read back"""


# ---------------------------------------------------------------------------------------------------------------- planners


class Planner(ABC):
    """
    A rule that chooses actions by looking ahead in a world model. It works with any model that has the capabilities it needs.

    :param action_space: the action space of the real environment
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
        :param state: the current state of each environment, ``(B, ...)``
        :param carry: the carry of the last call's plan, or ``None``
        :param is_first: ``(B,)`` booleans: rows whose carry must be ignored
        :param action_mask: ``(B, n_actions)`` booleans, true where an action is allowed
        :param prior: a policy that proposes actions: ``prior(state, generator)`` returns scaled actions ``(B, A)``
        :param value: a value function for the last state of a plan: ``value(state)`` returns ``(B,)``
        :param deterministic: whether the same state and carry always give the same plan: random choices then come from a
            stream that restarts at every call, and ``generator`` is not drawn from
        :param generator: the source of randomness
        """


# ------------------------------------------------------------------------------------------------------------- imagination


class ReplaySampler(Protocol):
    """An object with the ``sample`` method of SB3's replay buffers."""

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        Draw a batch, as ``ReplayBufferSamples`` or ``DictReplayBufferSamples``.

        :param batch_size: the number of rows
        :param env: the statistics that normalise observations and rewards
        """


class LearnerView(NamedTuple):
    """
    The view of a model-free learner that an imagination works with.

    :param world_model: the learner's world model
    :param act: the policy with its exploration: a function from raw observations ``(B, ...)`` to scaled actions ``(B, A)``
    :param gamma: the discount of a step
    :param real_ratio: the share of real rows in a batch
    :param generator: the source of randomness, on the CPU
    :param mix: a function that makes the sampler that mixes real rows with stored rollouts; it returns ``None`` while there
        are no rollouts. It takes a share of real rows, by default ``real_ratio``
    :param values: a function from raw observations ``(B, ...)`` to the values that each target critic gives them under the
        policy, ``(C, B)``, in the units that the learner's rewards have; ``None``: the learner has no target critics
    :param follow: the policy as targets take it, without random actions and action noise; ``None``: ``act``
    """

    world_model: WorldModel
    act: Callable[[Obs], th.Tensor]
    gamma: float
    real_ratio: float
    generator: th.Generator
    mix: Callable[..., ReplaySampler | None]
    values: Callable[[Obs], th.Tensor] | None = None
    follow: Callable[[Obs], th.Tensor] | None = None


class Imagination(ABC):
    """
    A rule by which a world model changes the batches that a model-free learner samples.

    Short rollouts that are stored and mixed in are one kind (:class:`RolloutImagination`); value expansion, which edits
    rewards, next observations and discounts of real rows, needs no store.

    :cvar needs_members: whether the world model must have members (:meth:`WorldModel.members`)
    :cvar uses_real_ratio: whether the learner's ``real_ratio`` has an effect; where it has none, giving one is an error
    :cvar needs_critics: whether the learner must have target critics (:attr:`LearnerView.values`)
    :cvar changes_rewards: whether the rewards of imagined rows are not the model's alone, so that nobody may compute them anew
    """

    needs_members: ClassVar[bool] = False
    needs_critics: ClassVar[bool] = False
    changes_rewards: ClassVar[bool] = False
    uses_real_ratio: bool = True

    @abstractmethod
    def sampler(self, learner: LearnerView, real: ReplayBuffer) -> ReplaySampler | None:
        """
        Make the sampler that stands in for the replay buffer while the base class trains.

        :param learner: the learner's policy, world model and discount
        :param real: the learner's own replay buffer
        :return: the sampler; ``None``: the real buffer itself
        """

    def check(self, world_model: WorldModel) -> None:
        """
        Refuse a world model that the rule cannot work with, as early as possible: an agent calls this when it is built.

        :param world_model: the world model, not yet fitted
        :raises MissingCapability: for a model without members, where the rule needs them
        """
        if self.needs_members and type(world_model).members is WorldModel.members:
            raise MissingCapability(
                f"{type(self).__name__} compares the members of an ensemble, and {type(world_model).__name__} has none: give "
                "world_model='ensemble'"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all values that change during training, as plain values, to save them with the agent."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no values, but was saved with {sorted(state)}")


class RolloutImagination(Imagination):
    """
    An imagination that rolls the policy out from start states, on a schedule, and keeps the rows for a while.

    Shapes are fixed and rollouts that ended are masked, never removed: compilers and CUDA graphs need static shapes.

    :cvar freq: the number of real environment steps between two calls
    :cvar starts_per_step: the number of start states per real environment step
    :cvar max_age: the number of real environment steps after which imagined transitions are forgotten
    :cvar n_steps: the largest number of single steps of :meth:`imagine` that the agent joins to one transition; above 1, all
        actions but the first of a rollout must be the policy's
    :cvar observation: the kind of observations in the rows: ``"decoded"``, or ``"features"`` of latent states
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
        """Return the number of steps to imagine after ``num_timesteps`` real environment steps."""

    def choose_starts(self, data: Data, n: int, *, generator: th.Generator | None = None) -> th.Tensor | None:
        """
        Choose the real observations to start from.

        :param data: the real data
        :param n: the number of start states
        :param generator: the source of randomness
        :return: ``(n,)`` integers out of ``data.row_ids()``, repetitions allowed; ``None``: drawn uniformly from all rows
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
        :param starts: the states to start from, ``(B, ...)`` (states, not observations: a recurrent model has filtered its
            context)
        :param act: the policy: a function from observations (or features, for latent imaginations) to scaled actions
            ``(B, A)``
        :param horizon: the number of steps
        :param generator: the source of the model's randomness
        """
