"""Steps of the real environment: what is refused, what is kept beside them, and what an exception leaves behind."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.agent.guards import fault_of_step
from sb3_mbrl.buffers import SideStore
from sb3_mbrl.contracts import WorldModel


class RealDataMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Looks after what comes from the real environment, where there is a world model to learn from it."""

    world_model: WorldModel | None
    _side: SideStore | None
    """An oracle's snapshots, beside the replay buffer"""
    _snapshot: np.ndarray | None
    """Of the environments as they are now"""
    _statistics: dict[str, Any] | None = None
    """Of ``VecNormalize``, after the last step that was fine"""

    def _looks_after_data(self) -> bool:
        """Without a world model the class is its base class to the last bit."""
        return self.world_model is not None

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        if self._looks_after_data():
            self._refuse_faulty(new_obs, reward, dones, infos)
            if self._side is not None and self._snapshot is not None:
                self._side.put("snapshot", replay_buffer.pos, self._snapshot)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if self._side is not None:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        """Keep the true environments' states, for an oracle."""
        if self.world_model is not None and self.world_model.needs_snapshot and self.env is not None:
            assert self.replay_buffer is not None
            if self._side is None or self._side.buffer is not self.replay_buffer:
                self._side = SideStore(self.replay_buffer)
            self._snapshot = self.world_model.capture_vec(self.env).numpy()  # type: ignore[operator]

    def _refuse_faulty(self, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        :raises ValueError: for NaN, infinity or a category that there is not; running statistics are put back to what they
            were before the step
        """
        fault, normalising = fault_of_step(self.observation_space, new_obs, reward, dones, infos), self._vec_normalize_env
        if fault is None and normalising is not None:
            # Clipping hides infinity; what is stored is the original.
            original = normalising.get_original_obs(), normalising.get_original_reward()
            fault = fault_of_step(self.observation_space, *original, dones, [{} for _ in infos])
        if fault is None:
            if normalising is not None:
                self._statistics = _statistics(normalising)
            return
        if normalising is not None and self._statistics is not None:
            normalising.__dict__.update(self._statistics)
        raise ValueError(
            f"{fault} at real step {self.num_timesteps}. The transition was not stored; everything before it is intact, and "
            "the agent can be saved. Mend the environment (stable_baselines3's VecCheckNan finds the action that led there)."
        )

    def _refuse_faulty_start(self) -> None:
        """Of what :meth:`learn` begins with; there is no reward yet."""
        normalising, nothing = self._vec_normalize_env, np.zeros(self.n_envs)
        first = self._last_obs if normalising is None else normalising.get_original_obs()
        fault = fault_of_step(self.observation_space, first, nothing, nothing, [{} for _ in nothing])
        if fault is not None:
            raise ValueError(f"{fault} when it was reset, after {self.num_timesteps} real steps. Mend the environment.")

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """
        As SB3's. After an exception, or when a callback has ended training, the environment is a step ahead of the buffer:
        going on begins a new episode.
        """
        if self._looks_after_data() and self._vec_normalize_env is not None:
            self._statistics = _statistics(self._vec_normalize_env)
        try:
            result = super().collect_rollouts(*args, **kwargs)
        except BaseException:
            if self._looks_after_data():
                self._cut_off_episodes()
            raise
        if not result.continue_training and self._looks_after_data():
            self._cut_off_episodes()
        return result

    def _cut_off_episodes(self) -> None:
        """Let the newest rows end their episodes, by a time limit: what comes next does not follow from them."""
        # Without a last observation, SB3 resets the environment.
        self._last_obs: np.ndarray | dict[str, np.ndarray] | None = None
        buffer = self.replay_buffer
        if buffer is None or buffer.size() == 0:
            return
        newest = (buffer.pos - 1) % buffer.buffer_size
        running = buffer.dones[newest] == 0
        if isinstance(buffer, HerReplayBuffer):
            buffer.truncate_last_trajectory()
        else:
            buffer.dones[newest] = 1
        # Without stored last observations there is nothing to bootstrap from.
        if not buffer.optimize_memory_usage:
            buffer.timeouts[newest] = np.where(running, 1, buffer.timeouts[newest])


def _statistics(normalising: VecNormalize) -> dict[str, Any]:
    names = ("obs_rms", "ret_rms", "returns")
    return {name: copy.deepcopy(vars(normalising)[name]) for name in names if name in vars(normalising)}
