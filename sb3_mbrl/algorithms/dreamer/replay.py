"""Real sequences, and the latent states that are kept beside them."""

from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.algorithms.dreamer.policy import Memory
from sb3_mbrl.buffers.sequences import Replayed, SequenceSampler
from sb3_mbrl.models.rssm.model import RSSM
from sb3_mbrl.trees import State, tree_map


class LatentReplayMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """
    SB3's replay buffer, sampled in sequences that begin with the latent state that the agent had before them (DreamerV3's
    replay context); what training computes replaces what was stored.
    """

    world_model: RSSM
    replay_buffer: ReplayBuffer | None
    batch_length: int
    online: bool
    replay_context: bool
    _memory: Memory | None
    _model_id: str
    """Of this world model: latent states of another one mean something else"""

    def _new_sampler(self) -> None:
        buffer = self.replay_buffer
        assert buffer is not None
        if buffer.buffer_size <= self.batch_length:
            raise ValueError(
                f"batch_length={self.batch_length}: the replay buffer keeps {buffer.buffer_size} steps per environment "
                f"({self.n_envs} of them share buffer_size), and needs one more than the length. Choose a larger buffer_size "
                "or a smaller batch_length."
            )
        self._sampler = SequenceSampler(buffer, self.online)
        model = self.world_model
        self._sampler.warn_of_size(self._packed(th.zeros(1, model.settings.deter), th.zeros(1, *model.latent.shape)))

    def _follow_buffer(self) -> None:
        """The user may have put another replay buffer in the place of the one that latent states are stored beside."""
        if self._sampler.data.buffer is not self.replay_buffer:
            self._new_sampler()

    def _store_transition(self, replay_buffer: Any, *args: Any, **kwargs: Any) -> None:
        position = replay_buffer.pos
        super()._store_transition(replay_buffer, *args, **kwargs)
        assert self._memory is not None
        self._sampler.keep(position, self._packed(self._memory["deter"], self._memory["stoch"]))

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        self._follow_buffer()
        return result

    def _enough(self, batch_size: int) -> bool:
        """
        Not on next to nothing: after ``load`` without the replay buffer, updates on a few new steps would make an agent forget
        what it knew. A buffer that was given is learned from as it is.
        """
        assert self.replay_buffer is not None
        steps = self.replay_buffer.size() * self.n_envs
        wanted = min(self.learning_starts, batch_size * self.batch_length) if self.num_timesteps else 0
        return self._sampler.enough(self.batch_length) and (steps >= wanted or self.replay_buffer.full)

    def save_replay_buffer(self, path: Any) -> None:
        """As SB3's; the latent states of the steps go with it. SB3's own classes can read it."""
        assert self.replay_buffer is not None
        self._follow_buffer()
        latents = {"of": self._latents_of(), **self._sampler.state()}
        self.replay_buffer.latents = latents  # type: ignore[attr-defined]
        try:
            super().save_replay_buffer(path)
        finally:
            del self.replay_buffer.latents  # type: ignore[attr-defined]

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """As SB3's. Steps without latent states, or with those of another world model, begin anew where a sequence begins."""
        before, sampler = self.__dict__.get("replay_buffer"), self._sampler
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            self._new_sampler()
        except ValueError:
            self.replay_buffer, self._sampler = before, sampler
            raise
        latents = self.replay_buffer.__dict__.pop("latents", {})
        if latents.get("of") == self._latents_of():
            self._sampler.restore(latents)

    def _latents_of(self) -> tuple[Any, ...]:
        """What latent states have to fit."""
        chosen = self.world_model.settings
        return self._model_id, chosen.deter, chosen.latent, chosen.stoch, chosen.classes

    def _on_device(self, batch: Replayed) -> State:
        def move(leaf: th.Tensor) -> th.Tensor:
            return leaf.to(self.device, non_blocking=True)

        rows, start = tree_map(move, batch.rows), tree_map(move, batch.start)
        if not self.replay_context:
            start = {}
            rows.is_first[:, 0] = True
        if start:
            start = {"deter": start["deter"], "stoch": self.world_model.latent.unpack(start["stoch"])}
        return rows, start

    def _packed(self, deter: th.Tensor, stoch: th.Tensor) -> dict[str, th.Tensor]:
        return {"deter": deter, "stoch": self.world_model.latent.pack(stoch)}
