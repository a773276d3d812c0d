"""The mixin that makes an off-policy class of SB3 model-based, and a glossary of its loop.

The loop, from the outside in::

    learn                                           SB3's
      collect_rollouts                              SB3's: steps of the real environment
        _store_transition                           refuses data that is not finite
      train                                         once per collect_rollouts
        fit the world model        (every fit_freq real steps, or when the data has doubled; then judge it on held-out rows)
        imagine                    (every imagination.freq real steps, unless the model is no better than a trivial predictor)
          start states             real states, uniformly from the replay buffer
          horizon                  steps per start state
        super().train              SB3's gradient steps, on batches of real and imagined rows

**The seam.** Every off-policy ``train`` reads data through ``self.replay_buffer.sample``. While ``super().train`` runs, a
:class:`~sb3_mbrl.buffers.MixedSampler` stands in the buffer's place; afterwards, also after an exception, the same buffer is
back. No SB3 code is copied, and the user's buffer (Dict, n-step, HER) is never replaced.

**Randomness.** Everything of the model's draws from a stream of its own (:class:`~sb3_mbrl.rng.RandomStream`), so that an
agent whose model is off is bit-identical to its base class.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.agent.agent import WorldModelMixin
from sb3_mbrl.agent.conversion import UpgradeMixin
from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler, ReplayData
from sb3_mbrl.buffers.her import towards_goals
from sb3_mbrl.contracts import Imagination, Obs, WorldModel
from sb3_mbrl.holdout import Trial
from sb3_mbrl.imagination.acting import act_in_imagination
from sb3_mbrl.imagination.starts import check_choice
from sb3_mbrl.returns import multi_step


@contextmanager
def augmented_replay(agent: OffPolicyAlgorithm, sampler: MixedSampler | None) -> Iterator[None]:
    """
    Put a sampler in the place of an agent's replay buffer; usable with any off-policy class.

    :param agent: whose ``train`` is about to be called
    :param sampler: answers ``sample`` in the buffer's place; ``None`` leaves the buffer alone
    """
    real = agent.replay_buffer
    if sampler is not None:
        agent.replay_buffer = sampler  # type: ignore[assignment]
    try:
        yield
    finally:
        agent.replay_buffer = real


class ModelBasedMixin(WorldModelMixin, UpgradeMixin):
    """
    Left of an off-policy class of SB3: ``class MBPO(ModelBasedMixin, SAC)``. See :class:`~sb3_mbrl.MBPO` for the parameters.
    """

    imagination: Imagination | None
    imagination_kwargs: Any
    real_ratio: float
    _needs_decode = True  # imagined rows hold observations
    imagined: ImaginedBuffer | None
    """The imagined transitions (``None`` while there are none)"""

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        world_model: Any = "auto",
        world_model_kwargs: dict[str, Any] | None = None,
        imagination: Any = "branched",
        imagination_kwargs: dict[str, Any] | None = None,
        real_ratio: float = 0.5,
        fit_freq: int = 250,
        fit_kwargs: dict[str, Any] | None = None,
        reward_fn: Any = None,
        termination_fn: Any = "auto",
        plugins: Iterable[Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("policy_kwargs") is not None:
            kwargs["policy_kwargs"] = dict(kwargs["policy_kwargs"])  # SB3 writes into it
        try:
            super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)
        except AssertionError as error:
            if "action spaces" in str(error):
                error.add_note("For Discrete actions there are Dyna (DQN) and model_based(QRDQN), for Box actions MBPO (SAC)")
            raise
        self._take_choices(
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            partner=imagination,
            partner_kwargs=imagination_kwargs,
            fit_freq=fit_freq,
            fit_kwargs=fit_kwargs,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            plugins=plugins,
        )
        self.real_ratio = real_ratio
        self._imagined_at = -1
        self.phase_seconds |= {"imagine": 0.0, "update": 0.0}
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------------ parts

    def _setup_model(self) -> None:
        self.imagined = self.__dict__.get("imagined")  # not in a checkpoint, unless the user had it included
        super()._setup_model()
        if getattr(self.imagination, "observation", "decoded") != "decoded":
            raise ValueError(
                f"imagination_kwargs={self.imagination_kwargs}: {type(self).__name__}'s policy acts on observations, so "
                "imagined rows must be decoded ones. To train on features, use ModelVecEnv(..., observation='features')."
            )

    def _check_choices(self) -> None:
        ratio = self.real_ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0.0 <= ratio <= 1.0:
            raise ValueError(
                f"real_ratio={ratio!r}: give the share of real rows in a batch, from 0 to 1 (1: the model is off)"
            )
        super()._check_choices()

    def _without_imagination(self) -> bool:
        return self.real_ratio >= 1.0

    def _shared_settings(self) -> dict[str, Any]:
        # Real and imagined rows of one batch are discounted alike.
        return {"gamma": self.gamma}

    def _check_instance(self, model: WorldModel) -> None:
        super()._check_instance(model)
        if model.discount is not None and model.discount != self.gamma:
            raise ValueError(
                f"The world model was built with gamma={model.discount}, and this agent has gamma={self.gamma}: give both the "
                "same"
            )

    def _horizon(self) -> int:
        assert self.imagination is not None
        return self.imagination.horizon(self.num_timesteps)

    def _choose_starts(self, data: ReplayData, n: int, generator: th.Generator) -> th.Tensor | None:
        assert self.imagination is not None
        chosen = self.imagination.choose_starts(data, n, generator=generator)
        where = f"{type(self.imagination).__name__}.choose_starts"
        return None if chosen is None else check_choice(chosen, n, data, where)

    def _on_new_model(self) -> None:
        if self.imagined is not None:
            self.imagined.clear()

    def _start_clock(self) -> None:
        super()._start_clock()
        self._imagined_at = -1
        self._on_new_model()

    # ------------------------------------------------------------------------------------------------ train

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Fit and imagine where they are due, then run the base class's gradient steps on mixed batches.

        :param gradient_steps: of the base class
        :param batch_size: real and imagined rows together
        """
        if self.world_model is None:
            super().train(gradient_steps=gradient_steps, batch_size=batch_size)
            return
        self.policy.set_training_mode(False)
        if self._fit_due():
            self.fit_world_model()
        elif self._judge_again and self._enough_data():
            trial = Trial(self.world_model, self.model_data, self.fit_budget, fresh=self._fresh_steps())
            self._record_model(self._judge(trial))
        if self._imagination_due():
            self._imagine()
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        with self._phase("update"), augmented_replay(self, self._sampler()):
            super().train(gradient_steps=gradient_steps, batch_size=batch_size)
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def _sampler(self) -> MixedSampler | None:
        if not self._trusted or self.imagined is None or len(self.imagined) == 0:
            return None
        assert self.replay_buffer is not None
        return MixedSampler(self.replay_buffer, self.imagined, self.real_ratio, self.gamma, self._random.generator)

    # ------------------------------------------------------------------------------------------------ imagination

    def _imagination_due(self) -> bool:
        assert self.imagination is not None
        if not self._trusted or self.real_ratio >= 1.0 or not self._enough_data():
            return False
        freq = self.imagination.freq
        # Not "whenever it is empty": rollouts may all have been masked, and then the next are due in their turn.
        return self.imagined is None or self._imagined_at < 0 or self.num_timesteps // freq > self._imagined_at // freq

    def _imagine(self) -> None:
        """
        Imagine for the real steps since the last time. With an empty imagined buffer (first time, or after ``load``, which
        does not bring it back) as much as ``max_age`` would have kept.
        """
        model, imagination = self.world_model, self.imagination
        assert model is not None
        assert imagination is not None
        fresh = self.imagined is None or self._imagined_at < 0
        now = len(self.model_data) if fresh else self.num_timesteps
        before = max(0 if fresh else self._imagined_at, now - imagination.max_age)
        # Differences of whole numbers, so that nothing is lost or gained where this is called often.
        n_starts = int(imagination.starts_per_step * now) - int(imagination.starts_per_step * before)
        if n_starts == 0:
            return
        horizon = imagination.horizon(self.num_timesteps)
        self.registry.hook.sb3_mbrl_before_imagination(agent=self, horizon=horizon, n_starts=n_starts)
        with self._phase("imagine"), self._random.scope(self.device) as generator, th.no_grad():
            starts = self._start_states(n_starts, generator)
            imagined = imagination.imagine(model, starts, self._imagination_policy, horizon, generator=generator)
            if isinstance(self.replay_buffer, HerReplayBuffer) and isinstance(imagined.obs, dict):
                imagined = towards_goals(imagined, self.replay_buffer)
            capacity = max(1, int(imagination.starts_per_step * imagination.max_age * horizon))
            if self.imagined is None:
                self.imagined = ImaginedBuffer(capacity)
            self.imagined.forget_before(self.num_timesteps - imagination.max_age + 1)
            # A shrinking horizon keeps its rows until they age.
            young = len(self.imagined) + int(imagined.valid.sum())
            self.imagined.resize(max(capacity, min(self.imagined.capacity, young)))
            self.imagined.extend(multi_step(imagined, imagination.n_steps, self.gamma), self.num_timesteps)
        self._imagined_at = self.num_timesteps
        self._record("imagination/horizon", horizon)
        self._record("imagination/rows", len(self.imagined))
        for name, value in imagined.info.items():
            self._record(f"imagination/{name}", value)
        self.registry.hook.sb3_mbrl_after_imagination(agent=self, imagined=imagined)

    def _imagination_policy(self, obs: Obs) -> th.Tensor:
        """
        Actions for a batch of imagined rows (:func:`~sb3_mbrl.imagination.acting.act_in_imagination`).

        :param obs: raw, ``(B, ...)``
        :return: scaled, ``(B, A)``
        """
        if self._vec_normalize_env is not None:
            arrays = {key: value.cpu().numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu().numpy()
            obs, _ = self.policy.obs_to_tensor(self._vec_normalize_env.normalize_obs(arrays))
        # Inside the agent's own random scope, which torch's global generators continue.
        return act_in_imagination(self, obs, None)
