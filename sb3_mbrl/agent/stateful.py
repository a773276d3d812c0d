"""Acting in training with a policy that has a state: planners with a warm start, actors on filtered latent states."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.trees import tree_leaves, tree_map

Decide = Callable[[Any, Any, th.Tensor, bool], tuple[th.Tensor, Any]]
"""``decide(obs, state, is_first, deterministic)``: scaled actions ``(n_envs, A)`` and the new policy state"""


class StatefulActing(AgentObject):
    """
    The policy state of the environments of training, which evaluation does not touch.

    :param decide: the function that chooses actions for raw observations
    :param n_envs: the number of environments
    :param device: the device of policy states
    :param owner: the name of the agent's class, for warnings
    """

    def __init__(self, decide: Decide, n_envs: int, device: th.device, owner: str) -> None:
        self.decide, self.device, self.owner = decide, device, owner
        self.collecting = False
        """Whether real steps are being collected, so that ``predict`` continues the policy state of training"""
        self.normalised = False
        """Whether the agent was trained behind ``VecNormalize``"""
        self._warned_of_raw = False
        self.forget(n_envs)

    def forget(self, n_envs: int) -> None:
        """Forget the policy state: all environments begin new episodes."""
        self.state: Any = None
        """The policy state, one row per environment; ``state["action"]`` is the last action taken, scaled"""
        self.is_first = np.ones(n_envs, dtype=bool)
        """Which environments begin an episode with their next observation"""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Let ``predict`` act for the environments of training."""
        self.collecting = True
        try:
            yield
        finally:
            self.collecting = False

    def act(self, obs: Any, deterministic: bool) -> th.Tensor:
        """
        Choose actions for the environments of training.

        :param obs: raw, ``(n_envs, ...)``
        :return: scaled actions ``(n_envs, A)``
        """
        action, self.state = self.decide(obs, self.state, th.as_tensor(self.is_first), deterministic)
        return action

    def after_step(self, buffer_action: np.ndarray, dones: np.ndarray) -> None:
        """
        Note the actions that were taken and the ends of episodes.

        :param buffer_action: the scaled actions that were taken, noise included
        :param dones: ``(n_envs,)``
        """
        self.is_first = np.asarray(dones, dtype=bool)
        if self.state is not None:
            like = self.state["action"]
            self.state["action"] = th.as_tensor(buffer_action, device=like.device).reshape(len(self.is_first), -1)

    def raw(self, observation: Any, normalising: VecNormalize | None) -> Any:
        """
        Turn an observation from a call of ``predict`` into a raw one, as the world model needs it.

        :param normalising: the agent's own ``VecNormalize``, where it has one
        """
        if normalising is not None:
            return normalising.unnormalize_obs(observation)
        if self.normalised and not self._warned_of_raw:
            self._warned_of_raw = True
            warnings.warn(
                f"This {self.owner} was trained behind VecNormalize, and has none now: it takes the observations "
                "that predict() is given for raw ones. Load it with the environment (load(..., env=...)), or give raw ones.",
                stacklevel=4,
            )
        return observation

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        return {"normalised": self.normalised, "state": self.state, "is_first": self.is_first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Take back what :meth:`state_dict` gave. Where the environments are kept too (``load(..., force_reset=False)``), their
        episodes continue from the saved policy state; where they are reset, ``learn`` forgets it.
        """
        self.normalised = state["normalised"]
        if len(state["is_first"]) == len(self.is_first):
            self.is_first = state["is_first"]
            self.state = tree_map(lambda leaf: leaf.to(self.device), state["state"])
            if self.state is not None and any(len(leaf) != len(self.is_first) for leaf in tree_leaves(self.state)):
                raise ValueError(f"the policy state is not of {len(self.is_first)} environments")
