"""The base class of planners that optimise sequences of actions, and the functions that they share."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import MissingCapability, Plan, Planner, WorldModel
from sb3_mbrl.planners.action_distributions import ActionDistribution, make_action_distribution, mask_first, start
from sb3_mbrl.planners.rollout import Evaluation, Prior, StateValue, evaluate, rollout_prior
from sb3_mbrl.spaces import as_mask
from sb3_mbrl.trees import State, batch_size, tree_where

FIXED_SEED = 0
"""The seed of the random stream of every deterministic plan"""


class Task(NamedTuple):
    """One call of :meth:`Planner.plan`, as :meth:`SequencePlanner._optimise` sees it."""

    model: WorldModel
    state: State
    """The states of the environments, ``(B, ...)``"""
    rows: int
    """The number of environments, ``B``"""
    is_first: th.Tensor
    """``(B,)`` booleans: whether an episode begins"""
    carry: State | None
    """The carry of the last plan"""
    score: Callable[[th.Tensor], Evaluation]
    """A function from sequences ``(B, n, H, A)`` to their returns"""
    value: StateValue | None
    prior_sequences: th.Tensor | None
    """``(B, n, H, A)``: sequences of the prior policy, to be tried as well"""
    mask: th.Tensor | None
    """``(B, n_actions)`` booleans: whether an action is allowed in the first step"""
    generator: th.Generator | None


class SequencePlanner(Planner):
    """
    A planner that optimises a sequence of actions and takes its first one (model-predictive control).

    :param action_space: the action space of the environment
    :param horizon: the number of steps to look ahead
    :param population: the number of sequences per iteration
    :param gamma: the discount of a step
    :param n_prior: the number of sequences that follow the prior policy, if one is given
    :param std: the initial standard deviation of scaled actions
    """

    differentiates = False
    """Whether the planner needs gradients of the model"""

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        horizon: int = 25,
        population: int = 400,
        gamma: float = 1.0,
        n_prior: int = 24,
        std: float = 0.5,
    ) -> None:
        super().__init__(action_space)
        self.horizon = whole("horizon", horizon, 1)
        self.population = whole("population", population, 1)
        self.gamma = number("gamma", gamma, 0.0, 1.0)
        self.n_prior = whole("n_prior", n_prior, 0)
        self.std = number("std", std, 0.0, 10.0, open_low=True)
        self.distribution = self._make_distribution()

    def _make_distribution(self) -> ActionDistribution:
        return make_action_distribution(self.action_space, self.horizon, self.std)

    def plan(
        self,
        model: WorldModel,
        state: State,
        carry: State | None,
        *,
        is_first: th.Tensor,
        action_mask: th.Tensor | None = None,
        prior: Prior | None = None,
        value: StateValue | None = None,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> Plan:
        if deterministic:
            generator = th.Generator(model.device).manual_seed(FIXED_SEED)
        rows = batch_size(state)
        mask = None if action_mask is None else check_action_mask(action_mask, rows, self.action_space).to(model.device)
        diverged, scored = [], [0]

        def score(actions: th.Tensor) -> Evaluation:
            if mask is not None:
                actions = self._allowed(actions, mask)
            evaluation = evaluate(model, state, actions, gamma=self.gamma, value=value, generator=generator)
            diverged.append(evaluation.diverged.float().mean().detach())
            scored[0] += actions.shape[1]
            return evaluation

        with th.set_grad_enabled(self.differentiates):
            prior_sequences = None
            if prior is not None and self.n_prior:
                prior_sequences = rollout_prior(model, state, prior, self.n_prior, self.horizon, generator)
            task = Task(model, state, rows, is_first, carry, score, value, prior_sequences, mask, generator)
            sequence, carry, best = self._optimise(task)
        info = {"diverged": float(th.stack(diverged).mean()) if diverged else 0.0, "sequences": float(scored[0])}
        sequence = sequence.detach()
        if mask is not None:
            sequence = self._allowed(sequence[:, None], mask)[:, 0]
        return Plan(sequence[:, 0], carry, sequence, value=best, info=info)

    @abstractmethod
    def _optimise(self, task: Task) -> tuple[th.Tensor, State, th.Tensor]:
        """
        Optimise a sequence of actions for every environment.

        :return: the plan ``(B, H, A)``, the carry for the next call, and the expected return of the plan ``(B,)``
        """

    # ---- for subclasses

    def _start(self, task: Task) -> State:
        """Return the distribution's parameters at the beginning of a decision."""
        parameters = start(self.distribution, task.carry, task.is_first, task.rows, task.model.device)
        return parameters if task.mask is None else mask_first(parameters, task.mask, self.distribution)

    def _refit(self, parameters: State, elites: "Elites", momentum: float) -> State:
        """Fit the distribution to the elites; where all of them diverged, keep its parameters."""
        fitted = self.distribution.refit(parameters, elites.actions, elites.weights, momentum)
        return tree_where(elites.weights.sum(1) > 0, fitted, parameters)

    def _allowed(self, actions: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Replace forbidden first actions by the first action that is allowed."""
        assert isinstance(self.action_space, spaces.Discrete)
        first = int(self.action_space.start)
        chosen = actions[:, :, 0, 0] - first
        allowed = mask.gather(1, chosen)
        replacement = mask.float().argmax(1)[:, None].expand_as(chosen)
        actions = actions.clone()
        actions[:, :, 0, 0] = th.where(allowed, chosen, replacement) + first
        return actions


def check_action_mask(mask: Any, rows: int, action_space: spaces.Space) -> th.Tensor:
    """
    Check a mask of allowed actions.

    :param mask: ``(rows, n_actions)``, true where an action is allowed (MaskablePPO's ``action_masks``)
    :param rows: the number of environments
    :param action_space: the action space of the environment
    :return: the mask as booleans
    :raises MissingCapability: for action spaces other than Discrete
    :raises ValueError: for another shape, or a row in which no action is allowed
    """
    if not isinstance(action_space, spaces.Discrete):
        raise MissingCapability(f"action masks are for Discrete actions, not for {action_space}")
    mask, wanted = as_mask(mask), (rows, int(action_space.n))
    if tuple(mask.shape) != wanted:
        raise ValueError(f"action_mask has the shape {tuple(mask.shape)}: give {wanted}, with an allowed action in every row")
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0, 0])
        raise ValueError(
            f"action_mask allows no action in row {row}: give {wanted}, with an allowed action in every row (an episode that "
            "is over must be reset before the next decision)"
        )
    return mask


def best_of(actions: th.Tensor, returns: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Return the best ``(B, H, A)`` of the sequences ``(B, n, H, A)`` by their returns ``(B, n)``, and its return ``(B,)``."""
    value, index = returns.max(1)
    return actions[th.arange(len(actions), device=actions.device), index], value


class Elites(NamedTuple):
    """The best sequences of one iteration."""

    actions: th.Tensor
    """``(B, n, H, A)``, best first"""
    weights: th.Tensor
    """``(B, n)``: one over the number of sequences that did not diverge for these, 0 for the others"""
    value: th.Tensor
    """``(B,)``: the mean of their returns; minus infinity where all sequences diverged"""


def top(actions: th.Tensor, returns: th.Tensor, n: int) -> Elites:
    """Return the best ``n`` of the sequences ``(B, N, H, A)`` by their returns ``(B, N)``."""
    best, index = returns.topk(min(n, returns.shape[1]), dim=1)
    chosen = actions.gather(1, index[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
    finite = best.isfinite().float()
    weights = finite / finite.sum(1, keepdim=True).clamp(min=1.0)
    value = (weights * best.masked_fill(finite == 0, 0.0)).sum(1)
    return Elites(chosen, weights, value.masked_fill(finite.sum(1) == 0, -th.inf))
