"""The replay augmenter: imagines when it is due, keeps the rows, and mixes them into the batches of the base class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.agent.recorder import Recorder
from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler
from sb3_mbrl.buffers.her import towards_goals
from sb3_mbrl.contracts import Imagination, Imagined, LearnerView, ReplaySampler, RolloutImagination, WorldModel
from sb3_mbrl.returns import multi_step
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.trees import State


class ReplayAugmenter(AgentObject):
    """
    The owner of an agent's imagined transitions: it decides when the next are due, stores them, and mixes them into batches.

    :param random: the stream of the world model
    :param recorder: where phases and metrics are reported
    :param device: the device of the rows
    """

    def __init__(self, random: RandomStream, recorder: Recorder, device: th.device) -> None:
        self.random, self.recorder, self.device = random, recorder, device
        self.imagined: ImaginedBuffer | None = None
        """The imagined transitions; ``None`` before the first"""
        self.imagined_at = -1
        """Real steps at the last imagination; -1 before the first"""

    def due(self, imagination: RolloutImagination, num_timesteps: int) -> bool:
        """
        Tell whether rollouts are due: the first ones, or since the last ones a multiple of ``imagination.freq`` real steps was
        passed. (Steps come ``n_envs`` at a time, so the multiple itself may be stepped over.)
        """
        # An empty buffer is no reason: all rows of the last rollouts may have been masked.
        freq = imagination.freq
        return self._fresh or num_timesteps // freq > self.imagined_at // freq

    @property
    def _fresh(self) -> bool:
        """Whether nothing has been imagined yet"""
        return self.imagined is None or self.imagined_at < 0

    def n_starts(self, imagination: RolloutImagination, num_timesteps: int, rows: int) -> int:
        """
        Return the number of start states for the real steps since the last imagination; the first time, for as many of the
        newest real transitions as the age limit allows.

        :param num_timesteps: the number of real environment steps so far
        :param rows: the number of usable real transitions
        """
        now = rows if self._fresh else num_timesteps
        before = max(0 if self._fresh else self.imagined_at, now - imagination.max_age)
        # The difference of two rounded totals, so that fractions of a start add up over calls instead of getting lost.
        return int(imagination.starts_per_step * now) - int(imagination.starts_per_step * before)

    def imagine(
        self,
        model: WorldModel,
        imagination: RolloutImagination,
        starts: Callable[[int, th.Generator], State],
        act: Callable[[Any], th.Tensor],
        *,
        n_starts: int,
        horizon: int,
        gamma: float,
        num_timesteps: int,
        real: ReplayBuffer,
    ) -> Imagined:
        """
        Roll the policy out in the model, and store the valid rows.

        :param starts: a function that draws start states
        :param act: the policy, from raw observations to scaled actions
        :param n_starts: the number of rollouts
        :param horizon: steps per rollout
        :param gamma: the discount of a step
        :param num_timesteps: the number of real environment steps so far, from which the age of the rows counts
        :param real: the real transitions, which know the goals of hindsight experience replay
        """
        with self.recorder.phase("imagine"), self.random.scope(model.device) as generator, th.no_grad():
            imagined = imagination.imagine(model, starts(n_starts, generator), act, horizon, generator=generator)
            if isinstance(real, HerReplayBuffer) and isinstance(imagined.obs, dict):
                imagined = towards_goals(imagined, real)
            capacity = max(1, int(imagination.starts_per_step * imagination.max_age * horizon))
            if self.imagined is None:
                self.imagined = ImaginedBuffer(capacity)
            self.imagined.forget_before(num_timesteps - imagination.max_age + 1)
            # A shrinking horizon keeps its rows until they age.
            young = len(self.imagined) + int(imagined.valid.sum())
            self.imagined.resize(max(capacity, min(self.imagined.capacity, young)))
            self.imagined.extend(multi_step(imagined, imagination.n_steps, gamma), num_timesteps)
        self.imagined_at = num_timesteps
        self.recorder.record("imagination/horizon", horizon)
        self.recorder.record("imagination/rows", len(self.imagined))
        self.recorder.record_all("imagination", imagined.info)
        return imagined

    def sampler(
        self,
        imagination: Imagination,
        model: WorldModel,
        act: Callable[[Any], th.Tensor],
        real: ReplayBuffer,
        real_ratio: float,
        gamma: float,
        values: Callable[[Any], th.Tensor] | None = None,
        follow: Callable[[Any], th.Tensor] | None = None,
    ) -> ReplaySampler | None:
        """
        Return the sampler that stands in for the replay buffer while the base class trains; ``None``: the real buffer itself.

        :param act: the policy, from raw observations to scaled actions
        :param real: the learner's own replay buffer
        :param real_ratio: the share of real rows in a batch
        :param gamma: the discount of a step
        :param values: the values of the target critics, from raw observations; ``None``: there are none
        :param follow: the policy without random actions and action noise; ``None``: ``act``
        """

        def mix(share: float = real_ratio) -> ReplaySampler | None:
            if self.imagined is None or len(self.imagined) == 0:
                return None
            return MixedSampler(real, self.imagined, share, gamma, self.random.generator)

        view = LearnerView(model, act, gamma, real_ratio, self.random.generator, mix, values, follow)
        return imagination.sampler(view, real)

    def forget(self) -> None:
        """Drop all rows, because the world model has been replaced."""
        if self.imagined is not None:
            self.imagined.clear()

    def restart_clock(self) -> None:
        """Start counting real steps from 0."""
        self.imagined_at = -1
        self.forget()

    # ---- saving

    def rows_state(self) -> dict[str, Any]:
        """Return the imagined rows, to save them with the replay buffer; empty if there are none."""
        return {} if self.imagined is None else {"imagined": {**self.imagined.to_state(), "imagined_at": self.imagined_at}}

    def restore_rows(self, state: Mapping[str, Any]) -> None:
        """
        Take back what :meth:`rows_state` gave, if this agent has no rows and it is the agent, at the step, that the rows were
        saved with. Otherwise they are imagined anew when the next are due.
        """
        saved = state.get("imagined")
        if self.imagined is None and saved is not None and saved["imagined_at"] == self.imagined_at:
            self.imagined = ImaginedBuffer.from_state(saved, self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"imagined_at": self.imagined_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imagined_at = state["imagined_at"]
        if "imagined" in state:  # added by save(..., include=["imagined"])
            self.imagined = ImaginedBuffer.from_state(state["imagined"], self.device)
