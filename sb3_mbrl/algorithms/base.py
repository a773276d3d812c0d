"""The mixin that makes an off-policy class of SB3 model-based, and a glossary of its loop.

The loop, from the outside in::

    learn                                           SB3's
      collect_rollouts                              SB3's: steps of the real environment
        _store_transition                           checks that real data is finite; keeps what the replay buffer has no
        place for
      train                                         once per collect_rollouts
        fit the world model        (every fit_freq real steps, or when the data has doubled; then judge it on held-out rows)
        imagine                    (every imagination.freq real steps, unless the model is worse than a trivial predictor)
          start states             real states, uniformly from the replay buffer
          horizon                  steps per start state
        super().train              SB3's gradient steps, on batches of real and imagined rows

**The seam.** Every off-policy ``train`` reads data through ``self.replay_buffer.sample``. While ``super().train`` runs, a
:class:`~sb3_mbrl.buffers.MixedSampler` stands in the buffer's place; afterwards, also after an exception, the same buffer is
    back. No SB3 code
is copied, and the user's buffer (Dict, n-step, HER) is never replaced.

**Randomness.** Everything of the model's draws from a stream of its own (:class:`~sb3_mbrl.rng.RandomStream`), so that an
agent whose model is off is bit-identical to its base class.
"""

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_mbrl.algorithms.checkpoint import CheckpointMixin
from sb3_mbrl.algorithms.guards import nonfinite_fault
from sb3_mbrl.algorithms.parts import PartsMixin
from sb3_mbrl.buffers import ImaginedBuffer, MixedSampler, ReplayData, SideStore
from sb3_mbrl.contracts import CONTRACT_VERSION, FitBudget, Obs, Transitions
from sb3_mbrl.diagnostics import ModelQualityWarning, k_step_error, one_step_quality
from sb3_mbrl.fitting import holdout_mask, index_transitions
from sb3_mbrl.imagination import buffer_starts
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import SpaceCodec, unsupported_by_vectors
from sb3_mbrl.states import State, describe, state_map
from sb3_mbrl.testing.validate import validate_prediction

WARN_AFTER_ROWS = 500
"""A model that is worse than trivial on fewer real rows is only young."""


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


class ModelBasedMixin(PartsMixin, CheckpointMixin, OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """
    Left of an off-policy class of SB3: ``class MBPO(ModelBasedMixin, SAC)``. See :class:`~sb3_mbrl.MBPO` for the parameters.
    """

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
        real_ratio: float = 0.05,
        fit_freq: int = 250,
        fit_kwargs: dict[str, Any] | None = None,
        reward_fn: Any = None,
        termination_fn: Any = "auto",
        plugins: Iterable[Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
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
        if not 0.0 <= real_ratio <= 1.0:
            raise ValueError(
                f"real_ratio={real_ratio}: give the share of real rows in a batch, from 0 to 1 (1: the model is off)"
            )
        if fit_freq < 1:
            raise ValueError(f"fit_freq={fit_freq}: give the real environment steps between two fits, at least 1")
        self.real_ratio = real_ratio
        self.fit_freq = fit_freq
        self.fit_budget = FitBudget(**(fit_kwargs or {}))
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

    @property
    def model_data(self) -> ReplayData:
        """The world model's view on the replay buffer."""
        return ReplayData(self.replay_buffer, self._side)

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

    def _record(self, key: str, value: Any) -> None:
        """Log a figure, where there is a logger (SB3 makes it in ``learn``)."""
        if getattr(self, "_logger", None) is not None:
            self.logger.record(key, value)

    def _tell(self, what: str) -> None:
        """Say in the progress bar what is going on (the bar itself moves with real steps only)."""
        bar = getattr(self._progress_bar, "pbar", None)
        if bar is not None:
            bar.set_description(what)

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
            if self._side is None:
                self._side = SideStore(self.replay_buffer)
            self._snapshot = self.world_model.capture_vec(self.env).numpy()  # type: ignore[operator]

    def _refuse_nonfinite(self, new_obs: Any, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        fault = nonfinite_fault(new_obs, reward, dones, infos)
        if fault is not None:
            raise ValueError(
                f"Environment {fault[1]} returned NaN or infinity in its {fault[0]} at real step {self.num_timesteps}. The "
                "transition was not stored; everything before it is intact, and the agent can be saved. Mend the environment "
                "(stable_baselines3's VecCheckNan finds the action that led there)."
            )

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
            self._record_model(self._judge(self.model_data.transitions(), self.model_data))
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

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds[name] += time.perf_counter() - start
            self._record(f"time/{name}_s", self.phase_seconds[name])

    # ------------------------------------------------------------------------------------------------ fitting

    def _fit_due(self) -> bool:
        """
        Every ``fit_freq`` real steps (counted by crossings, since steps come ``n_envs`` at a time), and whenever the data
        has doubled. Not while there is less than half the data of the last fit: after ``load`` without the replay buffer, a
        refit on a few new rows would make the model forget what it knew.
        """
        assert self.world_model is not None
        rows = len(self.model_data)
        if rows == 0 or 2 * rows < self._fit_rows or (self._fit_at >= 0 and not self.world_model.learns):
            return False
        crossed = self._fit_at < 0 or self.num_timesteps // self.fit_freq > self._fit_at // self.fit_freq
        return crossed or rows >= 2 * self._fit_rows

    def fit_world_model(self, budget: FitBudget | None = None) -> dict[str, float]:
        """
        Fit the world model on the replay buffer now, and judge it. ``learn`` calls this by itself.

        :param budget: instead of ``fit_kwargs``
        :return: what is logged under ``model/``
        :raises ValueError: when the model is off, or there is no data
        """
        if self.world_model is None:
            raise ValueError(
                f"This {type(self).__name__} has no world model (world_model={self.world_model_class!r}): nothing to fit"
            )
        data, budget = self.model_data, budget or self.fit_budget
        rows = data.transitions()
        model = self._check_known_functions(rows)
        self.registry.hook.sb3_mbrl_before_model_fit(agent=self)
        with self._phase("fit"), self._random.scope(self.device) as generator:
            metrics = self._k_step_metrics(rows, generator)
            self._tell("fitting the world model")
            model.on_progress = self._tell
            try:
                if model.learns:
                    metrics.update(model.fit(data, budget, generator=generator))
            finally:
                model.on_progress = None
                self._tell("")
            model.eval()
            if not self._validated:
                state = self._start_states(2, generator)
                action = rows.action[:1].repeat(2, *[1] * (rows.action.dim() - 1)).to(model.device)
                prediction = model.step(state, action, generator=generator)
                validate_prediction(model, state, action, prediction)
                got = describe(model.decode(prediction.state))
                wanted = describe(state_map(lambda leaf: leaf[:1].expand(2, *leaf.shape[1:]), rows.obs))
                if got != wanted:
                    raise PluginContractError(
                        f"{type(model).__name__}.decode returned {got}, expected {wanted}. "
                        f"[contract v{CONTRACT_VERSION}, check_decode]"
                    )
                self._validated = True
            metrics.update(self._judge(rows, data))
        self._fit_at, self._fit_rows = self.num_timesteps, len(rows.reward)
        self.registry.hook.sb3_mbrl_after_model_fit(agent=self, metrics=metrics)
        self._record_model(metrics)
        return metrics

    def _record_model(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._record(f"model/{name}", value)

    def _judge(self, rows: Transitions, data: ReplayData) -> dict[str, float]:
        """Held-out figures, and whether imagination may run."""
        model = self.world_model
        assert model is not None
        self._judge_again = False
        enough = len(rows.reward) >= 2
        judged_elsewhere = model.context > 1 or self._side is not None or unsupported_by_vectors(self.observation_space)
        if judged_elsewhere or not enough:
            self._trusted = enough
            return {}
        held = holdout_mask(data.row_ids(), self.fit_budget)
        if bool(held.any()):
            rows = index_transitions(rows, held.nonzero().flatten())
        figures = one_step_quality(model, SpaceCodec(self.observation_space), rows)
        self._trusted = figures["vs_trivial"] < 1.0
        if not self._trusted and len(data) >= WARN_AFTER_ROWS and not self._warned:
            self._warned = True
            warnings.warn(
                f"After {len(data)} real transitions the world model predicts worse than a trivial predictor: its squared error "
                f"relative to the better of copying the state and predicting the mean is {figures['vs_trivial']:.2f} (below 1 is "
                "better). Imagination waits until it is better; until then training uses real data alone. See model/ in the log.",
                ModelQualityWarning,
                stacklevel=3,
            )
        return figures

    def _k_step_metrics(self, rows: Transitions, generator: th.Generator) -> dict[str, float]:
        """Open-loop errors on steps that came after the last fit: the model has not seen them in any way."""
        model = self.world_model
        assert model is not None and self.imagination is not None
        fresh = (self.num_timesteps - self._fit_at) // self.n_envs
        unseen = self._fit_at >= 0 and model.fitted and fresh >= 1
        if not unseen or self._side is not None or unsupported_by_vectors(self.observation_space):
            return {}
        codec = SpaceCodec(self.observation_space)
        variance = codec.encode(rows.next_obs).var(0, correction=0).to(model.device)
        horizon = self.imagination.horizon(self.num_timesteps)
        metrics = {}
        for name, steps in (("1", 1), ("5", 5), ("h", horizon)):
            windows = self.model_data.newest(256, model.context - 1 + steps, within=fresh, generator=generator)
            if windows is not None:
                error, copy = k_step_error(model, codec, windows, variance)
                metrics[f"error_{name}"], metrics[f"copy_error_{name}"] = error, copy
        return metrics

    # ------------------------------------------------------------------------------------------------ imagination

    def _enough_data(self) -> bool:
        """Fewer rows than ``learning_starts``: after ``load`` without the replay buffer, or in a buffer that holds no more."""
        assert self.replay_buffer is not None
        return self.replay_buffer.full or len(self.model_data) >= self.learning_starts

    def _imagination_due(self) -> bool:
        assert self.imagination is not None
        if not self._trusted or self.real_ratio >= 1.0 or not self._enough_data():
            return False
        freq = self.imagination.freq
        return self.imagined is None or len(self.imagined) == 0 or self.num_timesteps // freq > self._imagined_at // freq

    def _imagine(self) -> None:
        """
        Imagine for the real steps since the last time. With an empty imagined buffer (first time, or after ``load``, which
        does not bring it back) as much as ``max_age`` would have kept.
        """
        model, imagination = self.world_model, self.imagination
        assert model is not None and imagination is not None
        fresh = self.imagined is None or len(self.imagined) == 0
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
            self.imagined.forget_before(self.num_timesteps - imagination.max_age)
            # A shrinking horizon keeps its rows until they age.
            self.imagined.resize(max(capacity, len(self.imagined)))
            self.imagined.extend(imagined, self.num_timesteps)
        self._imagined_at = self.num_timesteps
        self._record("imagination/horizon", horizon)
        self._record("imagination/rows", len(self.imagined))
        for name, value in imagined.info.items():
            self._record(f"imagination/{name}", value)
        self.registry.hook.sb3_mbrl_after_imagination(agent=self, imagined=imagined)

    def _start_states(self, n: int, generator: th.Generator) -> State:
        model, data = self.world_model, self.model_data
        assert model is not None
        if self._side is None:
            return buffer_starts(model, data)(n, generator)
        rows, envs = data.draw(n, generator)
        return model.initial(data.contexts_at(rows, envs, 1).obs[:, 0], self._side.get("snapshot", rows, envs))  # type: ignore[index]

    def _imagination_policy(self, obs: Obs) -> th.Tensor:
        """
        The actions of the current policy, sampled as they are in the real environment.

        :param obs: raw, ``(B, ...)``
        :return: scaled, ``(B, A)``
        """
        if self._vec_normalize_env is not None:
            arrays = {key: value.cpu().numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.cpu().numpy()
            obs, _ = self.policy.obs_to_tensor(self._vec_normalize_env.normalize_obs(arrays))
        return self.policy._predict(obs, deterministic=False)
