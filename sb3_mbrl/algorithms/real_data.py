"""Steps of the real environment: what is refused, what is kept beside them, and what an exception leaves behind."""

from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.algorithms.guards import nonfinite_fault
from sb3_mbrl.buffers import SideStore
from sb3_mbrl.contracts import WorldModel


class RealDataMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Looks after what comes from the real environment, where there is a world model to learn from it."""

    world_model: WorldModel | None
    _side: SideStore | None
    """An oracle's snapshots, beside the replay buffer"""
    _snapshot: np.ndarray | None
    """Of the environments as they are now"""

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list
    ) -> None:
        if self.world_model is not None:
            self._refuse_nonfinite(new_obs, reward, dones, infos)
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

    def _refuse_nonfinite(self, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        fault = nonfinite_fault(new_obs, reward, dones, infos)
        if fault is None and self._vec_normalize_env is not None:
            # Clipping hides infinity; what is stored is the original.
            original = self._vec_normalize_env
            fault = nonfinite_fault(original.get_original_obs(), original.get_original_reward(), dones, [{} for _ in infos])
        if fault is not None:
            raise ValueError(
                f"Environment {fault[1]} returned NaN or infinity in its {fault[0]} at real step {self.num_timesteps}. The "
                "transition was not stored; everything before it is intact, and the agent can be saved. Mend the environment "
                "(stable_baselines3's VecCheckNan finds the action that led there)."
            )

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """As SB3's. After an exception the environment may be a step ahead of the buffer: going on begins a new episode."""
        try:
            return super().collect_rollouts(*args, **kwargs)
        except BaseException:
            if self.world_model is not None:
                self._cut_off_episodes()
            raise

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
