"""``mcts``: Monte Carlo tree search in any world model with Discrete actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import Plan, Planner, UnsupportedSpace, WorldModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners.base import FIXED_SEED, check_action_mask
from sb3_mbrl.planners.rollout import Prior, StateValue, evaluate, rollout_prior
from sb3_mbrl.planners.tree_search import Leaf, SearchResult, TreeSearch
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import State, batch_size, finite_rows, tree_where

MOST_STEPS = 1_000_000
"""The largest number of steps of all rollouts from a node, whose actions are drawn together"""

Judge = Callable[[State], tuple[th.Tensor, th.Tensor]]
"""A function from ``B`` states to prior logits ``(B, n_actions)`` and values ``(B,)``"""


class MCTS(Planner):
    """
    A planner that searches a tree of actions, and acts by its improved policy; for Discrete actions.

    The nodes of the tree are states of the model. The edge of an action has the predicted reward and the discount
    ``gamma (1 - d)``, with the predicted probability ``d`` of termination, or the discount that the model predicts (negative
    where another player moves next). In a model that draws its predictions, an edge keeps the first one; particles
    (:class:`~sb3_mbrl.models.particles.Particles`) are the way to average.

    Prior probabilities and values of states, in the order of precedence:

    * the ``value`` that :meth:`plan` is given, with the model's own policy if it has one, else a uniform prior;
    * the model's own :meth:`~sb3_mbrl.contracts.WorldModel.policy_value`;
    * a uniform prior, and the returns of rollouts of ``horizon`` steps: of the ``prior`` policy if :meth:`plan` is given
      one, else of random actions.

    A prediction that is not finite ends the episode, with the reward that makes its edge the worst of the tree so far; if it
    is that of the chosen action itself, the search is repeated without that action.

    :param action_space: ``Discrete``
    :param num_simulations: the number of simulations, each of which adds a node to the tree
    :param horizon: the number of steps of a rollout; not used where values are known
    :param rollouts: the number of rollouts from each new node
    :param estimate: the value of a node by its rollouts: ``"best"``, the highest return, which is that of a plan; or
        ``"mean"``, the value of the policy that acts in them, as in classical tree search. Where a single model step is drawn
        at random, the highest return is also the luckiest: take the mean, or particles. Of two players, take the mean too:
        the highest return is that of a game in which the other player helps
    :param gamma: the discount of a step
    :param search: the kind of search: ``"gumbel"`` or ``"puct"``
    :param temperature: the temperature of the choice of actions, unless plans are deterministic
    :param kwargs: further arguments of :class:`~sb3_mbrl.planners.tree_search.TreeSearch`
    :raises UnsupportedSpace: for other actions
    """

    action_space: spaces.Discrete

    def __init__(
        self,
        action_space: spaces.Space,
        *,
        num_simulations: int = 50,
        horizon: int = 15,
        rollouts: int = 16,
        estimate: str = "best",
        gamma: float = 0.997,
        search: str = "gumbel",
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise UnsupportedSpace(f"A tree search needs Discrete actions, not {action_space}: choose 'icem' or 'cem'")
        super().__init__(action_space)
        self.search = TreeSearch(search, num_simulations=num_simulations, **kwargs)
        self.horizon = whole("horizon", horizon, 1)
        self.rollouts = whole("rollouts", rollouts, 1)
        if self.horizon * self.rollouts > MOST_STEPS:
            raise ValueError(
                f"horizon={self.horizon} and rollouts={self.rollouts}: give at most {MOST_STEPS} steps in a node's rollouts"
            )
        if estimate not in ("best", "mean"):
            raise ValueError(f"estimate={estimate!r}: choose 'best' or 'mean'")
        self.estimate = estimate
        self.gamma = number("gamma", gamma, 0.0, 1.0)
        self.temperature = number("temperature", temperature, 0.0)

    @th.no_grad()
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
        mask = None if action_mask is None else check_action_mask(action_mask, rows, self.action_space).cpu().numpy()
        judge = self._judge(model, prior, value, generator)
        device = None if generator is None else generator.device
        seed = int(th.randint(2**62, (1,), generator=generator, device=device))
        random = np.random.default_rng(seed)
        for _ in range(int(self.action_space.n)):
            expansion = _Expansion(model, judge, self.action_space, self.gamma, generator)
            result = self.search.search(
                expansion.root(state),
                expansion,
                mask=mask,
                rng=random,
                deterministic=deterministic,
                temperature=self.temperature,
            )
            if (mask := expansion.without_diverged(result, mask)) is None:
                break
        info = {
            "simulations": float(self.search.num_simulations),
            "depth": float(result.tree.depth.mean()),
            "diverged": float(np.mean(expansion.diverged)),
            "tree_s": result.seconds["tree"],
            "model_s": result.seconds["network"],
        }
        action = th.as_tensor(result.action + int(self.action_space.start), device=model.device)[:, None]
        policy, values = (th.as_tensor(part, device=model.device) for part in (result.policy, result.value))
        return Plan(action, carry={}, policy=policy, value=values, info=info)

    def _judge(
        self, model: WorldModel, prior: Prior | None, value: StateValue | None, generator: th.Generator | None
    ) -> Judge:
        """Choose the source of prior logits and values."""
        own = _own_policy_value(model)
        actions = int(self.action_space.n)

        def uniform(state: State) -> th.Tensor:
            return th.zeros(batch_size(state), actions, device=model.device)

        if value is not None:
            return lambda state: (uniform(state) if own is None else own(state)[0], value(state))
        if own is not None:
            return own
        return lambda state: (uniform(state), self._roll_out(model, state, prior, generator))

    def _roll_out(self, model: WorldModel, state: State, prior: Prior | None, generator: th.Generator | None) -> th.Tensor:
        """Return the best or mean returns of rollouts, ``(B,)``; minus infinity where all diverged."""
        rows = batch_size(state)
        if prior is not None:
            actions = rollout_prior(model, state, prior, self.rollouts, self.horizon, generator)
        else:
            drawn = sample_actions(self.action_space, rows * self.rollouts * self.horizon, generator, model.device)
            actions = drawn.view(rows, self.rollouts, self.horizon, -1)
        returns = evaluate(model, state, actions, gamma=self.gamma, generator=generator).returns
        if self.estimate == "best":
            return returns.max(1).values
        return returns.masked_fill(~returns.isfinite(), th.nan).nanmean(1).nan_to_num(nan=-th.inf)


class _Expansion:
    """
    The nodes of a tree, made by a world model.

    :param model: the world model
    :param judge: the source of prior logits and values
    :param action_space: the action space
    :param gamma: the discount of a step
    :param generator: the source of the model's randomness
    """

    def __init__(
        self, model: WorldModel, judge: Judge, action_space: spaces.Discrete, gamma: float, generator: th.Generator | None
    ) -> None:
        self.model, self.judge, self.gamma, self.generator = model, judge, gamma, generator
        self.first = int(action_space.start)
        self.diverged: list[np.ndarray] = []
        """Whether the prediction of each simulation was not finite, ``(B,)`` booleans each"""
        self.worst: np.ndarray | float = np.inf
        """The smallest return of an edge of each tree so far, ``(B,)``"""

    def root(self, state: State) -> Leaf:
        """Make the roots."""
        logits, value = map(_numbers, self.judge(state))
        value = np.where(np.isfinite(value), value, 0.0).astype(np.float32)
        return Leaf(state, logits, value, np.zeros_like(value), np.ones_like(value))

    def __call__(self, state: State, edge: np.ndarray) -> Leaf:
        """Take the actions in the states, ``(B, ...)``."""
        action = th.as_tensor(edge + self.first, device=self.model.device)[:, None]
        prediction = self.model.step(state, action, generator=self.generator)
        discount = self.gamma * (1 - prediction.terminated) if prediction.discount is None else prediction.discount
        finite = finite_rows((prediction.state, prediction.reward, discount))
        following = tree_where(finite, prediction.state, state)
        logits, values = self.judge(following)
        ended = discount == 0
        sound = finite & (values.isfinite() | ended) & ~logits.isnan().any(1)
        prior = _numbers(th.where(sound[:, None], logits, 0.0))
        value, reward, gamma = (_numbers(th.where(sound, x, 0.0)) for x in (values, prediction.reward, discount))
        value = np.where(gamma == 0.0, np.float32(0.0), value)
        ok = sound.cpu().numpy()
        returns = np.where(ok, reward + gamma * value, np.inf)
        self.worst = np.minimum(self.worst, returns)
        self.diverged.append(~ok)
        reward = np.where(ok, reward, np.where(np.isfinite(self.worst), self.worst, 0.0)).astype(np.float32)
        return Leaf(following, prior, value, reward, gamma)

    def without_diverged(self, result: SearchResult, mask: np.ndarray | None) -> np.ndarray | None:
        """
        Return a mask without the actions whose own predictions are not finite, if one of them was chosen and there are others;
        else ``None``.
        """
        node = result.tree.children[:, 0]
        bad = (node > 0) & np.take_along_axis(np.array(self.diverged).T, np.maximum(node - 1, 0), axis=1)
        allowed = ~bad if mask is None else mask & ~bad
        chosen = np.take_along_axis(bad, result.action[:, None], axis=1)[:, 0] & allowed.any(1)
        if not chosen.any():
            return None
        return np.where(chosen[:, None], allowed, True if mask is None else mask)


def _own_policy_value(model: WorldModel) -> Judge | None:
    """Return the model's own policy and value; ``None`` if it has none."""
    inner = model.model if isinstance(model, Particles) else model
    return None if type(inner).policy_value is WorldModel.policy_value else model.policy_value


def _numbers(values: th.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
