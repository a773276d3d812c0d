"""The mixin that makes an off-policy class of SB3 model-based, and a glossary of its loop.

The loop, from the outside in::

    learn                                           SB3's
      collect_rollouts                              SB3's: steps of the real environment
        _store_transition                           refuses data that is not finite
      train                                         once per collect_rollouts
        fit the world model        (every fit_freq real steps, or when the data has doubled; then judge it on held-out rows)
        imagine                    (every imagination.freq real steps, unless the model is worse than a trivial predictor)
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
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_mbrl.algorithms.acting import act_in_imagination
from sb3_mbrl.algorithms.guards import nonfinite_fault
from sb3_mbrl.algorithms.model_phase import ModelPhaseMixin
from sb3_mbrl.algorithms.parts import make_budget
from sb3_mbrl.algorithms.upgrade import UpgradeMixin
from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler, SideStore
from sb3_mbrl.contracts import Obs
from sb3_mbrl.presets import load_preset
from sb3_mbrl.rng import RandomStream


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


class ModelBasedMixin(ModelPhaseMixin, UpgradeMixin):
    """
    Left of an off-policy class of SB3: ``class MBPO(ModelBasedMixin, SAC)``. See :class:`~sb3_mbrl.MBPO` for the parameters.
    """

    _preset_name: ClassVar[str | None] = None
    """The file of presets, where there is one"""

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
        super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)
        self._choose_parts(
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            imagination=imagination,
            imagination_kwargs=imagination_kwargs,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            plugins=plugins,
        )
        self.real_ratio = real_ratio
        self.fit_freq = fit_freq
        self.fit_budget = make_budget(fit_kwargs)
        # Schedule and verdicts; saved.
        self._fit_at, self._fit_rows = -1, 0
        self._imagined_at = -1
        self._trusted = False
        self._judge_again = False
        self._warned = False
        self.phase_seconds = {"fit": 0.0, "imagine": 0.0, "update": 0.0}
        """Wall time spent in each phase so far"""
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def preset(cls, env_id: str) -> dict[str, Any]:
        """
        The settings for an environment, as keyword arguments: ``MBPO("MlpPolicy", "Hopper-v5", **MBPO.preset("Hopper-v5"))``.

        :param env_id: a Gymnasium id
        :raises KeyError: when there is none for it; the message names those there are
        """
        if cls._preset_name is None:
            raise KeyError(f"There are no presets of {cls.__name__}")
        return load_preset(cls._preset_name, env_id).kwargs

    # ------------------------------------------------------------------------------------------------ setup

    def _setup_model(self) -> None:
        saved = self.__dict__.get("_random")
        super()._setup_model()
        self._random = RandomStream(self.seed) if saved is None else saved
        self.imagined = self.__dict__.get("imagined")  # not in a checkpoint, unless the user had it included
        self._side: SideStore | None = None
        self._snapshot: np.ndarray | None = None
        self._progress_bar: ProgressBarCallback | None = None
        self._validated = False
        self._setup_parts()
        self._restore_extra()
        self.registry.hook.sb3_mbrl_on_setup(agent=self)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the world model's random stream starts anew too."""
        super().set_random_seed(seed)
        if seed is not None:
            self._random = RandomStream(seed)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if reset_num_timesteps:
            # The clock starts anew; what was learned stays.
            self._fit_at, self._imagined_at = min(self._fit_at, 0), -1
            if self.imagined is not None:
                self.imagined.clear()
        if self.world_model is not None:
            first = self._last_obs if self._vec_normalize_env is None else self._vec_normalize_env.get_original_obs()
            self._refuse_nonfinite(first, np.zeros(self.n_envs), np.zeros(self.n_envs), [{} for _ in range(self.n_envs)])
            self._take_snapshot()
            if self.num_timesteps > 0 and len(self.model_data) == 0 and self.verbose >= 1:
                print("The replay buffer is empty (see load_replay_buffer): imagination waits for new real rows to start from")
            if not self.world_model.fitted and len(self.model_data) >= max(self.learning_starts, 1):
                self.fit_world_model()
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        result = super()._init_callback(callback, progress_bar)
        children = result.callbacks if isinstance(result, CallbackList) else [result]
        self._progress_bar = next((child for child in children if isinstance(child, ProgressBarCallback)), None)
        return result

    # ------------------------------------------------------------------------------------------------ real data

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
            self._record_model(self._judge(self.model_data.transitions(), self.model_data, self.fit_budget))
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
        elapsed = len(self.model_data) if fresh else self.num_timesteps - self._imagined_at
        n_starts = max(1, int(imagination.starts_per_step * min(elapsed, imagination.max_age)))
        horizon = imagination.horizon(self.num_timesteps)
        self.registry.hook.sb3_mbrl_before_imagination(agent=self, horizon=horizon, n_starts=n_starts)
        with self._phase("imagine"), self._random.scope(self.device) as generator, th.no_grad():
            starts = self._start_states(n_starts, generator)
            imagined = imagination.imagine(model, starts, self._imagination_policy, horizon, generator=generator)
            capacity = max(1, int(imagination.starts_per_step * imagination.max_age * horizon))
            if self.imagined is None:
                self.imagined = ImaginedBuffer(capacity)
            self.imagined.forget_before(self.num_timesteps - imagination.max_age + 1)
            # A shrinking horizon keeps its rows until they age.
            self.imagined.resize(max(capacity, len(self.imagined)))
            self.imagined.extend(imagined, self.num_timesteps)
        self._imagined_at = self.num_timesteps
        self._record("imagination/horizon", horizon)
        self._record("imagination/rows", len(self.imagined))
        for name, value in imagined.info.items():
            self._record(f"imagination/{name}", value)
        self.registry.hook.sb3_mbrl_after_imagination(agent=self, imagined=imagined)

    def _imagination_policy(self, obs: Obs) -> th.Tensor:
        """
        Actions for a batch of imagined rows (:func:`~sb3_mbrl.algorithms.acting.act_in_imagination`).

        :param obs: raw, ``(B, ...)``
        :return: scaled, ``(B, A)``
        """
        if self._vec_normalize_env is not None:
            arrays = {key: value.cpu().numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu().numpy()
            obs, _ = self.policy.obs_to_tensor(self._vec_normalize_env.normalize_obs(arrays))
        # Inside the agent's own random scope, which torch's global generators continue.
        return act_in_imagination(self, obs, None)
