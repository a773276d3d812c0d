"""Agents that act in their world model's terms, with a memory of the episode so far: PETS, the Dreamers."""

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.rng import derive_seed


class RememberingMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Training has a memory and a random stream of its own, which evaluation does not touch."""

    policy: StatefulPolicy
    _memory: Any
    """Of the environments of training; ``_memory["action"]`` is what was done last, scaled"""
    _normalised: bool = False
    """Whether it was trained behind ``VecNormalize``"""
    _warned_of_raw: bool = False

    def _setup_model(self) -> None:
        self._forget()
        self._collecting = False
        super()._setup_model()

    def _forget(self) -> None:
        self._memory, self._is_first = None, np.ones(self.n_envs, dtype=bool)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the streams of world model and policy start anew too."""
        super().set_random_seed(seed)
        if seed is not None and isinstance(getattr(self, "policy", None), StatefulPolicy):
            self.policy.set_seed(derive_seed(seed))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_memory", "_is_first", "_collecting"]

    @abstractmethod
    def _act(self, obs: Any, deterministic: bool) -> th.Tensor:
        """
        Decide in training, and remember.

        :param obs: raw, ``(n_envs, ...)``
        :return: scaled actions ``(n_envs, A)``
        """

    @abstractmethod
    def _random_until(self, learning_starts: int) -> int:
        """The number of real steps before which actions are random."""

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """
        As SB3's; give the second result back as ``state``, as ``evaluate_policy`` does, and the next decision goes on from
        there.
        """
        if not self._collecting:
            return self.policy.predict(self._raw(observation), state, episode_start, deterministic)
        # VecNormalize has cut off what is far from its mean.
        raw = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        assert raw is not None
        obs, _ = self.policy.obs_to_tensor(raw)
        return self.policy.in_units(self._act(obs, deterministic)), None

    def _raw(self, observation: Any) -> Any:
        """What ``predict`` was given, as the world model knows it."""
        normalising = self._vec_normalize_env
        if normalising is not None:
            return normalising.unnormalize_obs(observation)
        if self._normalised and not self._warned_of_raw:
            self._warned_of_raw = True
            warnings.warn(
                f"This {type(self).__name__} was trained behind VecNormalize, and has none now: it takes the observations "
                "that predict() is given for raw ones. Load it with the environment (load(..., env=...)), or give raw ones.",
                stacklevel=3,
            )
        return observation

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self._collecting = True
        try:
            return super()._sample_action(self._random_until(learning_starts), action_noise, n_envs)
        finally:
            self._collecting = False

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._is_first = np.asarray(dones, dtype=bool)
        if self._memory is not None:  # what was done, noise included
            self._memory["action"] = th.as_tensor(buffer_action, device=self.device).reshape(self.n_envs, -1)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        before = self._last_obs
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        self._normalised = self._vec_normalize_env is not None
        if self._last_obs is not before:  # the environments were reset
            self._forget()
        return result
