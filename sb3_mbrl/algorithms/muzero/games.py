"""What a tree search expands: the learned model, the learned model with chance, or the true environment (AlphaZero)."""

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.algorithms.muzero.edges import Edges
from sb3_mbrl.models.muzero.model import MuZeroModel
from sb3_mbrl.models.oracle import OracleModel
from sb3_mbrl.planners.tree_search import Leaf
from sb3_mbrl.trees import State


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


class TrueGame(LearnedGame):
    """
    The true environment as a tree search expands it (AlphaZero): it steps, and the networks only judge what it shows.

    Where the environment has ``action_masks()``, illegal actions are no edges of the tree, at whatever depth.

    :param oracle: the true environment
    :param snapshot: the states of the environment at the roots, ``(B, S)``; ``None``: it finds them in the observations
    :param model: the world model, of which only the representation and the predictions are used
    :param edges: the actions that edges stand for
    :param generator: the source of randomness of sampled actions
    """

    def __init__(
        self,
        oracle: OracleModel,
        snapshot: th.Tensor | None,
        model: MuZeroModel,
        edges: Edges,
        generator: th.Generator | None = None,
    ) -> None:
        super().__init__(model, edges, generator)
        self.oracle, self.snapshot = oracle, snapshot

    def root(self, obs: PyTorchObs) -> Leaf:
        """Judge the roots of a batch of searches."""
        game = self.oracle.initial(obs, self.snapshot)
        zeros = np.zeros(len(game["ended"]), np.float32)
        return self._judged(game, zeros, zeros)

    def expand(self, state: State, edge: np.ndarray) -> Leaf:
        """Step the environment along edges, and judge the new nodes."""
        action = self.edges.actions(state, th.as_tensor(edge, device=self.model.device).long())
        prediction = self.oracle.step(state["game"], action)
        discount = self.model.step_discount * (1.0 - prediction.terminated)
        return self._judged(prediction.state, prediction.reward.cpu().numpy(), discount.cpu().numpy())

    def _judged(self, game: State, reward: np.ndarray, discount: np.ndarray) -> Leaf:
        latent = self.model.initial(self.oracle.decode(game))["latent"]
        policy, value = self.model.predictions(latent)
        state, logits = self.edges.out_of(latent, policy, self.generator)
        if "mask" in game:
            logits = logits.masked_fill(~game["mask"], -th.inf)
        judged = self.model.output.mean(value)
        return Leaf({**state, "game": game}, logits.float().cpu().numpy(), judged.cpu().numpy(), reward, discount)
