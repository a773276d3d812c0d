"""The policy of MuZero: a tree search in the learned model."""

import copy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.algorithms.muzero.edges import edges_of
from sb3_mbrl.algorithms.muzero.games import GameOfChance, LearnedGame, TrueGame
from sb3_mbrl.models.muzero.model import MuZeroModel
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.planners.base import FIXED_SEED, check_action_mask
from sb3_mbrl.planners.tree_search import SearchResult, TreeSearch
from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State, batch_size, tree_leaves, tree_map


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
        self._game: tuple[OracleModel | None, bool] = (None, True)
        self.set_seed(None)

    def attach(self, world_model: MuZeroModel, tree_search: TreeSearch, n_sampled: int) -> None:
        """Search in a world model from now on."""
        self._parts = (world_model, tree_search)  # in a tuple, so that torch does not register the model
        self.edges = edges_of(self.action_space, world_model.policy_output, n_sampled)
        self.target = copy.deepcopy(world_model).requires_grad_(False)
        self.target.optimizer = None
        self.target.eval()

    def search_in(self, oracle: OracleModel | None, *, learned: bool) -> None:
        """
        Choose what is searched in: the world model, or the true environment.

        :param oracle: the true environment, where there is one
        :param learned: whether to search in the world model
        """
        self._game = (oracle, learned)  # in a tuple, for the same reason

    @property
    def world_model(self) -> MuZeroModel:
        """The agent's world model"""
        return self._parts[0]

    @property
    def oracle(self) -> OracleModel | None:
        """The true environment, where searches are made in it"""
        oracle, learned = self._game
        if learned:
            return None
        if oracle is None:
            raise ValueError(
                "search_model='oracle' searches in the true environment, and the agent has none: load it with "
                "load(..., env=...), or search in what it has learned: load(..., search_model='learned')"
            )
        return oracle

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
        snapshot: th.Tensor | None = None,
    ) -> SearchResult:
        """
        Search from a batch of observations.

        :param obs: raw, ``(B, ...)``
        :param deterministic: whether there is no noise, and the best action is chosen
        :param action_mask: ``(B, n_actions)``, true where an action is allowed
        :param num_simulations: the number of simulations; ``None``: the agent's
        :param temperature: the temperature of the choice by visits (``"puct"``), or the scale of the noise (``"gumbel"``)
        :param generator: the source of randomness; ``None``: the policy's own
        :param model: the world model to search in, or to judge by; ``None``: the agent's
        :param snapshot: where the true environment is searched: its states, ``(B, S)``
        """
        if not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(obs) if leaf.is_floating_point()):
            raise ValueError("The observation holds NaN or infinity: there is nothing to search from")
        mask = None
        if action_mask is not None:
            mask = check_action_mask(action_mask, batch_size(obs), self.action_space).numpy()
        source = th.Generator().manual_seed(FIXED_SEED) if deterministic else generator or self.generator
        seed = int(th.randint(2**62, (1,), generator=source, device=source.device))
        searched = model or self.world_model
        with th.inference_mode():
            game = self._new_game(searched, source, snapshot)
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

    def _new_game(self, model: MuZeroModel, source: th.Generator, snapshot: th.Tensor | None) -> LearnedGame:
        if (oracle := self.oracle) is not None:
            return TrueGame(oracle, snapshot, model, self.edges, source)
        return (LearnedGame if model.chance is None else GameOfChance)(model, self.edges, source)

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
