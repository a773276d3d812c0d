"""The policy of MuZero: a tree search in the learned model."""

import copy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.algorithms.muzero.edges import Edges, edges_of
from sb3_mbrl.models.muzero.model import MuZeroModel
from sb3_mbrl.planners.base import FIXED_SEED, check_action_mask
from sb3_mbrl.planners.tree_search import Leaf, SearchResult, TreeSearch
from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State, batch_size, tree_leaves, tree_map


class LearnedGame:
    """
    The learned model as a tree search expands it: one call of the networks per simulation, for the whole batch.

    :param model: the world model
    :param edges: the actions that edges stand for
    :param generator: the source of randomness of sampled actions
    """

    def __init__(self, model: MuZeroModel, edges: Edges, generator: th.Generator | None = None) -> None:
        self.model, self.edges, self.generator = model, edges, generator
        self._discounts: np.ndarray | None = None

    def root(self, obs: PyTorchObs) -> Leaf:
        """Represent and predict the roots of a batch of searches."""
        latent = self.model.initial(obs)["latent"]
        policy, value = self.model.predictions(latent)
        zeros = np.zeros(len(latent), np.float32)
        return self._leaf(latent, policy, self.model.output.mean(value), zeros)

    def expand(self, state: State, edge: np.ndarray) -> Leaf:
        """Step along edges, and predict the new nodes."""
        action = self.edges.actions(state, th.as_tensor(edge, device=self.model.device).long())
        latent, reward, policy, value = self.model.predict_step(state["latent"], action)
        return self._leaf(latent, policy, value, reward.cpu().numpy())

    def _leaf(self, latent: th.Tensor, policy: th.Tensor, value: th.Tensor, reward: np.ndarray) -> Leaf:
        state, logits = self.edges.out_of(latent, policy, self.generator)
        if self._discounts is None or len(self._discounts) != len(latent):
            self._discounts = np.full(len(latent), self.model.step_discount, np.float32)
        return Leaf(state, logits.float().cpu().numpy(), value.cpu().numpy(), reward, self._discounts)


class GameOfChance(LearnedGame):
    """
    A learned model with chance (Stochastic MuZero): an action leads to a node where chance decides, whose edges are outcomes.

    Trees may be at nodes of different kinds in one simulation, so both networks are called for all of them.

    :param model: the world model, with ``chance_codes``
    :param edges: one edge per action
    :param generator: not used
    """

    def root(self, obs: PyTorchObs) -> Leaf:
        leaf = super().root(obs)
        never = np.zeros(len(leaf.value), bool)
        state = {**leaf.state, "chance": th.as_tensor(never, device=self.model.device)}
        return leaf._replace(state=state, logits=self._padded(leaf.logits), chance=never)

    def expand(self, state: State, edge: np.ndarray) -> Leaf:
        assert self.model.chance is not None  # this class is chosen for such models
        chance, latent = state["chance"], state["latent"]
        edges, n_actions, codes = th.as_tensor(edge, device=latent.device).long(), self.edges.n, self.model.chance.codes
        action = self.edges.actions(state, edges.clamp(max=n_actions - 1))
        after, outcomes, after_value = self.model.predict_afterstate(latent, action)
        following, reward, policy, value = self.model.predict_outcome(latent, edges.clamp(max=codes - 1))
        decided = chance.cpu().numpy()  # the parent was a chance node, so the child is one where the agent chooses
        logits = np.where(decided[:, None], self._padded(policy.cpu().numpy()), self._padded(outcomes.cpu().numpy()))
        new = {"latent": th.where(chance[:, None], following, after), "chance": ~chance}
        return Leaf(
            new,
            logits,
            th.where(chance, value, after_value).cpu().numpy(),
            th.where(chance, reward, th.zeros_like(reward)).cpu().numpy(),
            np.where(decided, self.model.step_discount, 1.0).astype(np.float32),
            ~decided,
        )

    def _padded(self, logits: np.ndarray) -> np.ndarray:
        """Give nodes of both kinds the same number of edges."""
        assert self.model.chance is not None
        missing = max(self.edges.n, self.model.chance.codes) - logits.shape[1]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf) if missing else logits


class MuZeroPolicy(StatefulPolicy):
    """
    A policy that searches: the observation is represented, and a tree is grown in latent space.

    SB3 builds it before there is a world model; the agent calls :meth:`attach`.

    :param observation_space: the observation space
    :param action_space: the action space
    :param lr_schedule: not used
    """

    target: MuZeroModel
    """A copy of the world model that follows it from time to time: values to bootstrap from, searches of stored steps"""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Any = None) -> None:
        super().__init__(observation_space, action_space, squash_output=isinstance(action_space, spaces.Box))
        self._codec = ActionCodec(action_space)
        self.set_seed(None)

    def attach(self, world_model: MuZeroModel, tree_search: TreeSearch, n_sampled: int) -> None:
        """Search in a world model from now on."""
        self._parts = (world_model, tree_search)  # in a tuple, so that torch does not register the model
        self.edges = edges_of(self.action_space, world_model.policy_output, n_sampled)
        self.target = copy.deepcopy(world_model).requires_grad_(False)
        self.target.optimizer = None
        self.target.eval()

    @property
    def world_model(self) -> MuZeroModel:
        """The agent's world model"""
        return self._parts[0]

    @property
    def tree_search(self) -> TreeSearch:
        """The settings of the search"""
        return self._parts[1]

    def search(
        self,
        obs: PyTorchObs,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
        num_simulations: int | None = None,
        temperature: float = 1.0,
        generator: th.Generator | None = None,
        model: MuZeroModel | None = None,
    ) -> SearchResult:
        """
        Search from a batch of observations.

        :param obs: raw, ``(B, ...)``
        :param deterministic: whether there is no noise, and the best action is chosen
        :param action_mask: ``(B, n_actions)``, true where an action is allowed
        :param num_simulations: the number of simulations; ``None``: the agent's
        :param temperature: of the choice by visits (``search="puct"``)
        :param generator: the source of randomness; ``None``: the policy's own
        :param model: the world model to search in; ``None``: the agent's
        """
        if not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(obs) if leaf.is_floating_point()):
            raise ValueError("The observation holds NaN or infinity: there is nothing to search from")
        mask = None
        if action_mask is not None:
            mask = check_action_mask(action_mask, batch_size(obs), self.action_space).numpy()
        source = th.Generator().manual_seed(FIXED_SEED) if deterministic else generator or self.generator
        seed = int(th.randint(2**62, (1,), generator=source, device=source.device))
        searched = model or self.world_model
        kind = LearnedGame if searched.chance is None else GameOfChance
        with th.inference_mode():
            game = kind(searched, self.edges, source)
            root = game.root(obs)
            if mask is not None:  # there may be more edges than actions, which no mask allows
                mask = np.pad(mask, ((0, 0), (0, root.logits.shape[1] - mask.shape[1])))
            result = self.tree_search.search(
                root,
                game.expand,
                mask=mask,
                num_simulations=num_simulations,
                rng=np.random.default_rng(seed),
                deterministic=deterministic,
                temperature=temperature,
            )
        own = slice(0, self.edges.n)
        return result._replace(policy=result.policy[:, own], visits=result.visits[:, own], q=result.q[:, own])

    def scaled_actions(self, result: SearchResult, action: np.ndarray | None = None) -> th.Tensor:
        """Return the scaled actions ``(B, A)`` that a search has chosen."""
        edge = th.as_tensor(result.action if action is None else action)
        return self.edges.actions(root_state(result), edge.to(self.world_model.device)).cpu()

    def decide(
        self,
        obs: PyTorchObs,
        state: Any,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
        num_simulations: int | None = None,
    ) -> tuple[th.Tensor, Any]:
        result = self.search(obs, deterministic=deterministic, action_mask=action_mask, num_simulations=num_simulations)
        return self.scaled_actions(result), None


def root_state(result: SearchResult) -> State:
    """Return the states of the roots of a search, ``(B, ...)``."""
    return tree_map(lambda leaf: leaf[0], result.tree.states)


def search_metrics(result: SearchResult) -> dict[str, float]:
    """
    Return the metrics of a search, means over its trees: ``depth``, the longest walk; ``root_value`` and ``network_value``,
    after and before the search; ``improvement``, the divergence of the improved policy from the prior one, in nats; and
    ``network_share``, the share of wall time that the networks took.
    """
    tree, policy = result.tree, result.policy
    with np.errstate(divide="ignore", invalid="ignore"):
        prior = tree.prior[:, 0, : policy.shape[1]]
        gains = np.where(policy > 0, policy * (np.log(policy) - np.log(prior)), 0.0)
    seconds = result.seconds
    return {
        "depth": float(tree.depth.mean()),
        "root_value": float(result.value.mean()),
        "network_value": float(tree.raw_value[:, 0].mean()),
        "improvement": float(gains.sum(1).mean()),
        "network_share": seconds["network"] / max(seconds["network"] + seconds["tree"], 1e-9),
    }
