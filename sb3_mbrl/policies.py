"""What policies share that act in a world model's terms and remember the episode so far."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import batch_size


class StatefulPolicy(BasePolicy):
    """
    ``predict`` works as of SB3's recurrent policies: give its second result back as ``state``, and where an episode begins as
    ``episode_start`` (``evaluate_policy`` does). Without a state, an observation is taken for the first of its episode.
    Nothing but a private random stream is drawn from.
    """

    _codec: ActionCodec

    @abstractmethod
    def decide(
        self, obs: PyTorchObs, memory: Any, is_first: th.Tensor, *, deterministic: bool = False
    ) -> tuple[th.Tensor, Any]:
        """
        :param obs: raw, ``(B, ...)``
        :param memory: of the last call, or ``None``
        :param is_first: ``(B,)``: where an episode begins
        :return: scaled actions ``(B, A)``, and the memory for the next call
        """

    def set_seed(self, seed: int | None) -> None:
        """Let the private random stream start anew (``None``: from the operating system)."""
        self.generator = th.Generator()
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """
        As SB3's.

        :param state: what the last call returned; ``None``: the observation is the first of its episode
        :param episode_start: ``(n_envs,)``: where an episode begins, and nothing is to be carried over
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "predict() was given a tuple: what a Gymnasium environment's reset() returns? Give the first part: obs, info "
                "= env.reset()"
            )
        self.set_training_mode(False)
        obs, vectorised = self.obs_to_tensor(observation)
        rows = batch_size(obs)
        first = np.zeros(rows, bool) if episode_start is None else np.asarray(episode_start, dtype=bool).reshape(rows)
        scaled, memory = self.decide(obs, state, th.as_tensor(first), deterministic=deterministic)
        actions = self.in_units(scaled)
        return (actions if vectorised else actions.squeeze(axis=0)), memory

    def in_units(self, scaled: th.Tensor) -> np.ndarray:
        """Actions ``(B, A)`` as the environment takes them, ``(B, *shape)``."""
        return self._codec.to_numpy(scaled)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        rows = batch_size(observation)
        scaled, _ = self.decide(observation, None, th.ones(rows, dtype=th.bool), deterministic=deterministic)
        return scaled.reshape(rows, *(self.action_space.shape or ()))
