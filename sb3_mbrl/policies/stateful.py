"""The base class of policies that have a state: planners with a warm start, actors on filtered latent states."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.spaces import ActionCodec, as_mask
from sb3_mbrl.trees import batch_size, tree_leaves


class StatefulPolicy(BasePolicy):
    """
    A policy whose ``predict`` works as that of SB3's recurrent policies: give its second result back as ``state``, and where
    an episode begins as ``episode_start`` (``evaluate_policy`` does). Without a state, an observation is taken for the first
    of its episode. The policy draws from a private random stream alone.
    """

    _codec: ActionCodec

    @abstractmethod
    def decide(
        self,
        obs: PyTorchObs,
        state: Any,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
    ) -> tuple[th.Tensor, Any]:
        """
        Choose actions.

        :param obs: raw, ``(B, ...)``
        :param state: the policy state that the last call returned, or ``None``
        :param is_first: ``(B,)``: which rows begin an episode
        :param deterministic: the most likely actions, or the same plan at every call
        :param action_mask: ``(B, n_actions)``, true where an action is allowed
        :return: scaled actions ``(B, A)``, and the new policy state
        """

    def set_seed(self, seed: int | None) -> None:
        """Begin the private random stream anew (``None``: with a seed from the operating system)."""
        self.generator = th.Generator()
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, Any]:
        """
        As SB3's.

        :param state: the second result of the last call; ``None``: the observation is the first of its episode
        :param episode_start: ``(n_envs,)``: which environments begin an episode, for which ``state`` is forgotten
        :param action_masks: ``(n_envs, n_actions)``, true where an action is allowed, as MaskablePPO takes them
        :param options: further arguments that :meth:`decide` of this policy takes
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "predict() was given a tuple: what a Gymnasium environment's reset() returns? Give the first part: obs, info "
                "= env.reset()"
            )
        self.set_training_mode(False)
        obs, vectorised = self.obs_to_tensor(observation)
        if not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(obs) if leaf.is_floating_point()):
            raise ValueError("The observation holds NaN or infinity: there is nothing to decide from")
        rows = batch_size(obs)
        first = np.zeros(rows, bool) if episode_start is None else np.asarray(episode_start, dtype=bool).reshape(rows)
        options["deterministic"] = deterministic
        if action_masks is not None:
            mask = as_mask(action_masks)
            options["action_mask"] = mask if vectorised or mask.dim() > 1 else mask[None]
        scaled, new = self.decide(obs, state, th.as_tensor(first), **options)
        actions = self.in_units(scaled)
        return (actions if vectorised else actions.squeeze(axis=0)), new

    def in_units(self, scaled: th.Tensor) -> np.ndarray:
        """Convert scaled actions ``(B, A)`` to the environment's units, ``(B, *shape)``."""
        return self._codec.to_numpy(scaled)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        rows = batch_size(observation)
        scaled, _ = self.decide(observation, None, th.ones(rows, dtype=th.bool), deterministic=deterministic)
        return scaled.reshape(rows, *(self.action_space.shape or ()))
