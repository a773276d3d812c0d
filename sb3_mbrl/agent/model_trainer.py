"""The phase of ``train`` in which the world model is fitted, checked against its contract and judged."""

import warnings
from numbers import Integral
from typing import ClassVar

import torch as th
from stable_baselines3 import HerReplayBuffer

from sb3_mbrl.agent.parts import PartsMixin, make_budget
from sb3_mbrl.agent.recorder import ReportingMixin
from sb3_mbrl.buffers import ReplayData, SideStore
from sb3_mbrl.buffers.her import goal_starts
from sb3_mbrl.contracts import CONTRACT_VERSION, FitBudget, Transitions, WorldModel
from sb3_mbrl.diagnostics import ModelQualityWarning, k_step_error
from sb3_mbrl.holdout import Trial
from sb3_mbrl.imagination.starts import filter_contexts
from sb3_mbrl.plugins import PluginContractError
from sb3_mbrl.plugins.validation import validate_metrics, validate_prediction
from sb3_mbrl.spaces import SpaceCodec, unsupported_by_vectors
from sb3_mbrl.trees import State, describe, tree_leaves, tree_map

WARN_AFTER_ROWS = 500
"""A model that is worse than trivial on fewer real rows is only young."""


class ModelPhaseMixin(ReportingMixin, PartsMixin):
    """Fits the world model when it is due, and says how good it is."""

    fit_freq: int
    fit_budget: FitBudget
    _fit_at: int
    """Real steps at the last fit; -1 before the first"""
    _fit_rows: int
    """Real transitions that it saw"""
    _trusted: bool
    """The verdict: whether imagination may run"""
    _while_untrusted: ClassVar[str] = "Imagination waits until it is better; until then training uses real data alone."
    _needs_decode: ClassVar[bool] = False
    """Whether the learner cannot do without decoded observations"""
    _judge_again: bool
    _warned: bool
    _warned_of_lost_ends: bool = False
    _warned_of_bounds: bool = False
    _validated: bool
    _side: SideStore | None

    def _check_choices(self) -> None:
        freq = self.fit_freq
        if not isinstance(freq, Integral) or isinstance(freq, bool) or freq < 1:
            raise ValueError(f"fit_freq={freq!r}: give the real environment steps between two fits, a whole number from 1")
        if "fit_kwargs" in self.__dict__:  # of load()
            self.fit_budget = make_budget(self.__dict__.pop("fit_kwargs"))
        super()._check_choices()

    @property
    def model_data(self) -> ReplayData:
        """The world model's view on the replay buffer."""
        return ReplayData(self.replay_buffer, self._side)

    def _enough_data(self) -> bool:
        """Fewer rows than ``learning_starts``: after ``load`` without the replay buffer, or in a buffer that holds no more."""
        assert self.replay_buffer is not None
        return self.replay_buffer.full or len(self.model_data) >= self.learning_starts

    def _fit_due(self) -> bool:
        """
        First when there are ``learning_starts`` rows, then every ``fit_freq`` real steps (counted by crossings, since steps
        come ``n_envs`` at a time) and whenever the data has doubled. Not while there is less than half the data of the last
        fit: after ``load`` without the replay buffer, a refit on a few new rows would make the model forget what it knew.
        """
        assert self.world_model is not None
        rows = len(self.model_data)
        if rows == 0 or 2 * rows < self._fit_rows or (self._fit_at >= 0 and not self.world_model.learns):
            return False
        if self._fit_at < 0:
            return self._enough_data()
        crossed = self.num_timesteps // self.fit_freq > self._fit_at // self.fit_freq
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
        before = self.world_model
        model = self._check_known_functions(rows)
        if model is not before:
            # Another model: neither the verdict nor the dreams of the one before hold.
            self._trusted = False
            self._on_new_model()
        self._warn_of_lost_ends(model)
        self._warn_of_wrong_bounds(rows)
        self.registry.hook.sb3_mbrl_before_model_fit(agent=self)
        with self._phase("fit"), self._random.scope(self.device) as generator:
            metrics = self._k_step_metrics(rows, generator)
            self._tell("fit")
            model.on_progress = self._tell
            try:
                trial = Trial(model, data, budget, fresh=self._fresh_steps() if model is before else None)
                if model.learns:
                    fitted = trial.fit(generator)
                    if fitted is not None:
                        validate_metrics(model, fitted)
                        metrics.update(fitted)
            finally:
                model.on_progress = None
                self._tell("")
            model.eval()
            if not self._validated:
                self._validate(model, rows, generator)
                self._check_oracle(model, generator)
                self._validated = True
            metrics.update(self._judge(trial))
            metrics.update(trial.refit(generator))
        self._fit_at, self._fit_rows = self.num_timesteps, len(rows.reward)
        self.registry.hook.sb3_mbrl_after_model_fit(agent=self, metrics=metrics)
        self._record_model(metrics)
        return metrics

    def _validate(self, model: WorldModel, rows: Transitions, generator: th.Generator) -> None:
        """Once, on two rows: whether what the model returns has the contract's shapes, before it is relied on."""
        state, action = self._start_states(2, generator), rows.action[:1].expand(2, -1).to(model.device)
        prediction = model.step(state, action, generator=generator)
        validate_prediction(model, state, action, prediction)
        if not model.decodes and not self._needs_decode:
            return
        decoded = model.decode(prediction.state)
        like = tree_map(lambda leaf: leaf[:1].expand(2, *leaf.shape[1:]), rows.obs)
        got, wanted = describe(decoded), describe(like)
        if got == wanted:
            got, wanted = (", ".join(str(leaf.dtype) for leaf in tree_leaves(obs)) for obs in (decoded, like))
        if got != wanted:
            raise PluginContractError(
                f"{type(model).__name__}.decode returned {got}, expected {wanted}. "
                f"[contract v{CONTRACT_VERSION}, check_decode]"
            )

    def _check_oracle(self, model: WorldModel, generator: th.Generator) -> None:
        """Once, on a few rows: whether the true environment that it was given is the one that the agent is in."""
        if self._side is None:
            return
        assert self.replay_buffer is not None
        data = ReplayData(self.replay_buffer, self._side, "snapshot")
        rows, envs = data.draw(min(16, len(data)), generator)
        real = tree_map(lambda leaf: leaf[:, 0], data.contexts_at(rows, envs, 1))
        known = ~real.is_last if self.replay_buffer.optimize_memory_usage else th.ones_like(real.is_last)
        prediction = model.step(model.initial(real.obs, self._side.get("snapshot", rows, envs)), real.action.to(model.device))
        pairs = zip(tree_leaves(model.decode(prediction.state)), tree_leaves(real.next_obs), strict=True)
        same = [th.isclose(a.cpu().float(), b.float(), rtol=1e-3, atol=1e-4).flatten(1).all(1) for a, b in pairs]
        same.append(th.isclose(prediction.reward.cpu().float(), real.reward.float(), rtol=1e-3, atol=1e-4))
        wrong = known & ~th.stack(same).all(0)
        if bool(wrong.any()):
            raise ValueError(
                f"{type(model).__name__} repeats {int(wrong.sum())} of {len(wrong)} real transitions with another result: its "
                "environment is not the one that the agent is in. Give it the same: world_model_kwargs={'env': ..., "
                "'env_kwargs': ...}, wrappers and arguments included."
            )

    def _record_model(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._record(f"model/{name}", value)

    def _warn_of_lost_ends(self, model: WorldModel) -> None:
        """With ``optimize_memory_usage`` the rows that end episodes are no training data (see :class:`ReplayData`)."""
        buffer = self.replay_buffer
        assert buffer is not None
        learned = model.learns and self._known.termination_fn is None
        # Not by the buffer's ends: those of learn() are among them.
        lost = buffer.optimize_memory_usage and self._episode_num > 0
        if learned and lost and not self._warned_of_lost_ends:
            self._warned_of_lost_ends = True
            warnings.warn(
                "optimize_memory_usage=True keeps no last observations of episodes, so the world model cannot learn when "
                "they end, and imagined ones never do. If episodes terminate, pass termination_fn=... or "
                "optimize_memory_usage=False.",
                ModelQualityWarning,
                stacklevel=3,
            )

    def _warn_of_wrong_bounds(self, rows: Transitions) -> None:
        """Imagined observations are members of the space; where real ones are not, no prediction can be right."""
        if self._warned_of_bounds or unsupported_by_vectors(self.observation_space):
            return
        codec = SpaceCodec(self.observation_space)
        seen = codec.encode(rows.next_obs)
        off = (seen - codec.project(seen)).abs()
        worst = int(off.max(0).values.argmax())
        row = int(off[:, worst].argmax())
        # Simulators overstep by rounding errors.
        if float(off[row, worst]) > 1e-3 * (1 + float(seen[row, worst].abs())):
            self._warned_of_bounds = True
            warnings.warn(
                f"The environment leaves its observation space: {codec.names[worst]} was {float(seen[row, worst]):.4g}. "
                "Imagined observations are clipped to the space, so the world model cannot predict such states: correct the "
                "bounds.",
                ModelQualityWarning,
                stacklevel=3,
            )

    def _fresh_steps(self) -> int | None:
        """The steps per environment since the last fit; ``None`` before the first."""
        return None if self._fit_at < 0 else (self.num_timesteps - self._fit_at) // self.n_envs

    def _judge(self, trial: Trial) -> dict[str, float]:
        """Figures on rows that the model has not seen, and whether imagination may run."""
        rows = len(trial.data)
        self._judge_again = False
        if self._side is not None or rows < 2:  # an oracle has been held against real rows
            self._trusted = rows >= 2
            return {}
        verdict = trial.judge()
        if verdict is None:
            return {}
        self._trusted = verdict.trusted
        if not self._trusted and rows >= WARN_AFTER_ROWS and not self._warned:
            self._warned = True
            warnings.warn(
                f"After {rows} real transitions the world model predicts no better than a trivial predictor: its squared "
                f"error relative to the better of copying the state and predicting the mean is "
                f"{verdict.figures['vs_trivial']:.2f} "
                f"(on so many rows it is trusted below {verdict.limit:.2f}). {self._while_untrusted} See model/ in the log.",
                ModelQualityWarning,
                stacklevel=3,
            )
        return verdict.figures

    def _k_step_metrics(self, rows: Transitions, generator: th.Generator) -> dict[str, float]:
        """Open-loop errors on steps that came after the last fit: the model has not seen them in any way."""
        model = self.world_model
        assert model is not None
        fresh = (self.num_timesteps - self._fit_at) // self.n_envs
        unseen = self._fit_at >= 0 and model.fitted and fresh >= 1
        if not unseen or self._side is not None or unsupported_by_vectors(self.observation_space):
            return {}
        codec = SpaceCodec(self.observation_space)
        variance = codec.encode(rows.next_obs).var(0, correction=0).to(model.device)
        horizon = self._horizon()
        metrics = {}
        for name, steps in (("1", 1), ("5", 5), ("h", horizon)):
            windows = self.model_data.newest(256, model.context - 1 + steps, within=fresh, generator=generator)
            if windows is not None:
                error, copy = k_step_error(model, codec, windows, variance)
                metrics[f"error_{name}"], metrics[f"copy_error_{name}"] = error, copy
        return metrics

    # ---- what the part that looks ahead decides

    def _horizon(self) -> int:
        """How far it looks ahead now: one of the steps after which the model's error is told."""
        return 1

    def _choose_starts(self, data: ReplayData, n: int, generator: th.Generator) -> th.Tensor | None:
        """``(n,)`` rows to start from, by their ids; ``None``: uniformly."""
        return None

    def _on_new_model(self) -> None:
        """The world model is another one: what the one before has left behind does not hold."""

    def _start_states(self, n: int, generator: th.Generator) -> State:
        assert self.replay_buffer is not None
        # An oracle starts where it has a snapshot.
        model, data = self.world_model, ReplayData(self.replay_buffer, self._side, None if self._side is None else "snapshot")
        assert model is not None
        chosen = self._choose_starts(data, n, generator)
        plain = chosen is None and self._side is None and model.context == 1
        # Where rewards need more than goals (copy_info_dict), none could be told for goals that are put in afterwards.
        if isinstance(self.replay_buffer, HerReplayBuffer) and plain and not self.replay_buffer.copy_info_dict:
            return model.initial(goal_starts(self.replay_buffer, n, generator))
        rows, envs = data.draw(n, generator) if chosen is None else data.places(chosen)
        if self._side is None:
            return filter_contexts(model, data.contexts_at(rows, envs, model.context))
        obs = tree_map(lambda leaf: leaf[:, 0], data.contexts_at(rows, envs, 1).obs)
        return model.initial(obs, self._side.get("snapshot", rows, envs))
