"""The base class that makes an off-policy algorithm of SB3 model-based, and a glossary of its loop.

The loop, from the outside in::

    learn                                           SB3's
      collect_rollouts                              SB3's: steps of the real environment
        _store_transition                           refuses NaN, infinity, and categories outside their space
      train                                         once per collect_rollouts
        fit the world model        (every fit_freq real steps, or when the data has doubled; then evaluate it)
        imagine                    (every imagination.freq real steps, unless the model is no better than a trivial predictor)
          start states             real states, uniformly from the replay buffer
          horizon                  steps per start state
        super().train              SB3's gradient steps, on batches of real and imagined rows

**The replay hook.** Every off-policy ``train`` reads data through ``self.replay_buffer.sample``. While ``super().train`` runs,
the sampler of the imagination (for rollouts a :class:`~sb3_mbrl.buffers.MixedSampler`) stands in for the buffer, which is
put back afterwards, also after an exception. No SB3 code is copied, and the user's buffer (Dict, n-step, HER) is never
replaced.

**Randomness.** The world model draws from a private stream (:class:`~sb3_mbrl.rng.RandomStream`), so that an agent whose model
is off is bit-identical to its base class.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any, Self

import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_mbrl.agent import conversion
from sb3_mbrl.agent.agent import OffPolicyAgent, make_budget
from sb3_mbrl.agent.augmenter import ReplayAugmenter
from sb3_mbrl.agent.model_trainer import ModelTrainer
from sb3_mbrl.agent.settings import keyword_arguments
from sb3_mbrl.buffers import ImaginedBuffer
from sb3_mbrl.contracts import (
    Data,
    Imagination,
    MissingCapability,
    Obs,
    ReplaySampler,
    RolloutImagination,
    UnsupportedSpace,
)
from sb3_mbrl.imagination.acting import act_in_imagination, evaluating, has_target_critics, target_values
from sb3_mbrl.imagination.starts import check_choice
from sb3_mbrl.policies import policy_names
from sb3_mbrl.spaces import ActionCodec, unusable_by_sb3

REAL_RATIO = 0.5
"""The share of real rows in a batch, unless another one is given"""


@contextmanager
def augmented_replay(agent: OffPolicyAlgorithm, sampler: ReplaySampler | None) -> Iterator[None]:
    """
    Let a sampler stand in for an agent's replay buffer; usable with any off-policy class.

    :param agent: the agent whose ``train`` is about to be called
    :param sampler: the object whose ``sample`` replaces the buffer's; ``None`` leaves the buffer alone
    """
    real = agent.replay_buffer
    if sampler is not None:
        agent.replay_buffer = sampler  # type: ignore[assignment]
    try:
        yield
    finally:
        agent.replay_buffer = real


def default_extractor(policy_class: type[BasePolicy]) -> Any:
    """Return the class of the feature extractor that a policy has by default; ``None`` where its constructor names none."""
    parameter = inspect.signature(policy_class).parameters.get("features_extractor_class")
    return None if parameter is None else parameter.default


class ModelBasedMixin(OffPolicyAgent):
    """
    The base class of agents whose batches mix real and imagined transitions. It stands to the left of an off-policy class of
    SB3, as in ``class MBPO(ModelBasedMixin, SAC)``. See :class:`~sb3_mbrl.MBPO` for the parameters.
    """

    part_kinds = ("world_model", "imagination")
    object_names = (*OffPolicyAgent.object_names, "augmenter")
    needs_decode = True  # imagined rows hold observations

    augmenter: ReplayAugmenter
    trainer: ModelTrainer
    imagination_class: Any
    imagination_kwargs: Any
    real_ratio: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.policy_aliases = policy_names(cls.policy_aliases)

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        world_model: Any = "auto",
        world_model_kwargs: dict[str, Any] | None = None,
        imagination: Any = "branched",
        imagination_kwargs: dict[str, Any] | None = None,
        real_ratio: float = REAL_RATIO,
        fit_freq: int = 250,
        fit_kwargs: dict[str, Any] | None = None,
        reward_fn: Any = None,
        termination_fn: Any = "auto",
        plugins: Iterable[Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("policy_kwargs") is not None:
            kwargs["policy_kwargs"] = keyword_arguments("policy_kwargs", kwargs["policy_kwargs"])  # SB3 writes into it
        try:
            super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)
        except AssertionError as error:
            if "action spaces" in str(error):
                error.add_note("For Discrete actions there are Dyna (DQN) and model_based(QRDQN), for Box actions MBPO (SAC)")
            raise
        self._refuse_taken_names()
        self.world_model_class, self.world_model_kwargs = world_model, world_model_kwargs
        self.imagination_class, self.imagination_kwargs = imagination, imagination_kwargs
        self.real_ratio, self.fit_freq, self.fit_kwargs = real_ratio, fit_freq, fit_kwargs
        self.reward_fn, self.termination_fn, self.plugins = reward_fn, termination_fn, plugins
        if _init_setup_model:
            self._setup_model()

    @property
    def imagination(self) -> Imagination | None:
        """The rule by which the world model changes batches"""
        return self.parts.imagination

    @property
    def imagined(self) -> ImaginedBuffer | None:
        """The imagined transitions (``None`` before the first)"""
        return self.augmenter.imagined

    # ------------------------------------------------------------------------------------------------ setup

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        ratio = self.real_ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0.0 <= ratio <= 1.0:
            raise ValueError(
                f"real_ratio={ratio!r}: give the share of real rows in a batch, from 0 to 1 (1: the model is off)"
            )

    def _model_is_off(self) -> bool:
        return isinstance(self.real_ratio, Real) and self.real_ratio >= 1.0

    def _check_spaces(self) -> None:
        """Refuse what SB3's networks would fail on. With the model off, that is left to them."""
        if self.world_model_class is None or self.real_ratio == 1:
            return
        super()._check_spaces()
        extractor = self.policy_kwargs.get("features_extractor_class", default_extractor(self.policy_class))
        if reason := unusable_by_sb3(self.observation_space, self.action_space, extractor):
            raise UnsupportedSpace(f"{type(self).__name__} cannot learn in these spaces: {reason}")

    def _shared_settings(self) -> dict[str, Any]:
        # Real and imagined rows of one batch are discounted alike.
        return {"gamma": self.gamma}

    def _make_objects(self) -> None:
        super()._make_objects()
        self.augmenter = ReplayAugmenter(self.random, self.recorder, self.device)

    def _build(self) -> None:
        if isinstance(self.imagination, RolloutImagination) and self.imagination.observation != "decoded":
            raise ValueError(
                f"imagination_kwargs={self.imagination_kwargs}: {type(self).__name__}'s policy acts on observations, so "
                "imagined rows must be decoded ones. To train on features, use ModelVecEnv(..., observation='features')."
            )
        imagination, model = self.imagination, self.world_model
        if imagination is None or model is None:
            return
        name = type(imagination).__name__
        imagination.check(model)
        if imagination.needs_critics and not has_target_critics(self):
            raise MissingCapability(
                f"{name} needs the target critics of SAC, TD3 or DDPG, which {type(self).__name__} lacks: take 'mve' or "
                "'branched'"
            )
        if isinstance(self.replay_buffer, HerReplayBuffer):
            if not isinstance(imagination, RolloutImagination):
                raise ValueError(
                    f"{name} expands targets by the model's rewards, which know the real goals only, and hindsight replay "
                    "learns from others: give a rule for rollouts, such as imagination='branched'"
                )
            if imagination.changes_rewards:
                raise ValueError(
                    f"{name} lowers rewards, and hindsight replay computes them anew for its goals, so that nothing would be "
                    "left of it: give imagination='branched', 'macura' or 'infoprop'"
                )
        if not imagination.uses_real_ratio and self.real_ratio != REAL_RATIO:
            raise ValueError(
                f"real_ratio={self.real_ratio}: {name} does not mix rows by it (it stores none, or sets their share itself): "
                "leave real_ratio out"
            )

    # ------------------------------------------------------------------------------------------------ train

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Fit and imagine where they are due, then run the base class's gradient steps on augmented batches.

        :param gradient_steps: the number of gradient steps of the base class
        :param batch_size: the number of real and imagined rows together
        """
        if self.world_model is None:
            super().train(gradient_steps=gradient_steps, batch_size=batch_size)
            return
        self.policy.set_training_mode(False)
        if self._fit_is_due():
            self.fit_world_model()
        elif self.trainer.judge_again and self._enough_data():
            self.trainer.judge_anew(self.world_model, self.model_data, make_budget(self.fit_kwargs), self.num_timesteps)
        if self._imagination_is_due():
            self._imagine()
        self.registry.hook.sb3_mbrl_before_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)
        with self.recorder.phase("update"), augmented_replay(self, self._sampler()):
            self._update(gradient_steps, batch_size)
        self.registry.hook.sb3_mbrl_after_policy_update(agent=self, gradient_steps=gradient_steps, batch_size=batch_size)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        """Make the updates: those of the base class, unless an algorithm has its own."""
        super().train(gradient_steps=gradient_steps, batch_size=batch_size)

    def _imagination_is_due(self) -> bool:
        imagination = self.imagination
        if not isinstance(imagination, RolloutImagination) or not self.trainer.trusted or self.real_ratio >= 1.0:
            return False
        return self._enough_data() and self.augmenter.due(imagination, self.num_timesteps)

    def _imagine(self) -> None:
        """Imagine rollouts for the real steps since the last call."""
        imagination = self.imagination
        assert isinstance(imagination, RolloutImagination)  # no other is ever due
        n_starts = self.augmenter.n_starts(imagination, self.num_timesteps, len(self.model_data))
        if n_starts == 0:
            return
        horizon = self._horizon()
        self.registry.hook.sb3_mbrl_before_imagination(agent=self, horizon=horizon, n_starts=n_starts)
        imagined = self.augmenter.imagine(
            self._model,
            imagination,
            self._start_states,
            self._act_in_imagination,
            n_starts=n_starts,
            horizon=horizon,
            gamma=self.gamma,
            num_timesteps=self.num_timesteps,
            real=self._buffer,
        )
        self.registry.hook.sb3_mbrl_after_imagination(agent=self, imagined=imagined)

    def _sampler(self) -> ReplaySampler | None:
        """The sampler that stands in for the replay buffer; ``None`` while the world model is not trusted."""
        if not self.trainer.trusted or self.imagination is None:
            return None
        act, settings = self._act_in_imagination, (self.real_ratio, self.gamma)
        values = self._target_values if has_target_critics(self) else None
        follow = partial(self._act_in_imagination, explores=False)
        return self.augmenter.sampler(self.imagination, self._model, act, self._buffer, *settings, values, follow)

    def _act_in_imagination(self, obs: Obs, explores: bool = True) -> th.Tensor:
        """
        Choose actions for a batch of imagined rows (:func:`~sb3_mbrl.imagination.acting.act_in_imagination`).

        :param obs: raw observations, ``(B, ...)``
        :param explores: whether with the agent's exploration, beyond what its policy draws
        :return: scaled actions, ``(B, A)``
        """
        obs = self._as_policies_see(obs)
        # SB3's policies draw from torch's global generators. Callers have entered the scope of the world model's random
        # stream, in which these continue that stream (RandomStream.scope); SB3's own numbers are not disturbed.
        with evaluating(getattr(self.policy, "actor", None)):  # imagined rows leave the statistics of its layers alone
            action = act_in_imagination(self, obs, None, explores=explores)
        return ActionCodec(self.action_space).nearest(action) if self._converts_actions else action

    def _target_values(self, obs: Obs) -> th.Tensor:
        """Compute the values that each target critic gives to raw observations, ``(C, B)``."""
        return target_values(self, self._as_policies_see(obs))

    def _as_policies_see(self, obs: Obs) -> Any:
        """Normalise raw observations as VecNormalize does, if the agent is trained behind it."""
        if self._vec_normalize_env is None:
            return obs
        arrays = {key: value.cpu().numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu().numpy()
        return self.policy.obs_to_tensor(self._vec_normalize_env.normalize_obs(arrays))[0]

    # ---- hooks of the base class

    def _horizon(self) -> int:
        imagination = self.imagination
        return imagination.horizon(self.num_timesteps) if isinstance(imagination, RolloutImagination) else 1

    def _choose_starts(self, data: Data, n: int, generator: th.Generator) -> th.Tensor | None:
        if not isinstance(self.imagination, RolloutImagination):
            return None
        chosen = self.imagination.choose_starts(data, n, generator=generator)
        where = f"{type(self.imagination).__name__}.choose_starts"
        return None if chosen is None else check_choice(chosen, n, data, where)

    def _on_new_model(self) -> None:
        self.augmenter.forget()

    def _side_state(self) -> dict[str, Any]:
        return {**super()._side_state(), **self.augmenter.rows_state()}

    def _restore_side(self, state: Mapping[str, Any]) -> None:
        super()._restore_side(state)
        self.augmenter.restore_rows(state)

    def _restart_clock(self) -> None:
        super()._restart_clock()
        self.augmenter.restart_clock()

    # ------------------------------------------------------------------------------------------------ conversion

    @classmethod
    def from_model_free(cls, agent: OffPolicyAlgorithm, env: Any = None, replay_buffer: Any = None, **kwargs: Any) -> Self:
        """
        Continue with a trained model-free agent: ``MBPO.from_model_free(SAC.load("old.zip"), env, "old_buffer.pkl")``.

        Networks, optimisers, step and update counters, hyperparameters and the replay buffer are taken over, so that the new
        agent acts like the old one until it trains. The world model is fitted on the replay buffer at the start of
        ``learn(..., reset_num_timesteps=False)``.

        :param agent: an instance of this class's base, such as :class:`~stable_baselines3.SAC` for MBPO
        :param env: the environment, as in the constructor; ``None``: the agent's
        :param replay_buffer: a :class:`~stable_baselines3.common.buffers.ReplayBuffer` or the path of a saved one; ``None``:
            the agent's, which both agents then share (a HER buffer then relabels with the new environment)
        :param kwargs: the constructor's arguments for the model (``world_model=...``, ``real_ratio=...``), and SB3's arguments
            that may change in ``load``, such as ``gradient_steps``
        :raises TypeError: for an agent of another class; the message names the class to use
        :raises ValueError: when the environment or the replay buffer does not fit
        """
        return conversion.from_model_free(cls, agent, env, replay_buffer, kwargs)

    def to_model_free(self) -> Any:
        """
        Convert the agent to an instance of the base class, without a model, whose ``save`` makes a plain SB3 zip.

        Networks, optimisers, counters and the replay buffer (shared, not copied) are taken over. No random stream is touched,
        so that a callback may call this in the middle of training.
        """
        return conversion.to_model_free(self)
