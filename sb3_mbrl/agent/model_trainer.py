"""The trainer of a world model that is fitted apart from the policy: when to fit, fitting, judging, trusting."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.agent.recorder import Recorder
from sb3_mbrl.buffers import ReplayData, SideStore
from sb3_mbrl.contracts import FitBudget, Transitions, WorldModel
from sb3_mbrl.diagnostics import ModelQualityWarning, k_step_error
from sb3_mbrl.holdout import Trial
from sb3_mbrl.plugins.faults import Fault, contract_error
from sb3_mbrl.plugins.validation import validate_metrics, validate_prediction
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import SpaceCodec, unsupported_by_vectors
from sb3_mbrl.trees import State, describe, tree_leaves, tree_map

WARN_AFTER_ROWS = 500
"""A model that is worse than trivial on fewer real rows is only young."""

_SAVED = ("fit_at", "fit_rows", "trusted", "judge_again", "validated", "model_is_new")
"""The attributes of a trainer that are saved"""

Starts = Callable[[int, th.Generator], State]
"""``starts(n, generator)``: ``n`` states of the world model to start from"""


class ModelTrainer(AgentObject):
    """
    Fits the world model when it is due, judges it on held-out rows, and keeps the verdict.

    :param observation_space: the environment's
    :param random: the stream of every random choice
    :param recorder: where phases and progress are reported
    :param when_untrusted: the consequence of a model that is not trusted, for the warning
    :param needs_decode: whether the learner cannot do without decoded observations
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        random: RandomStream,
        recorder: Recorder,
        when_untrusted: str,
        needs_decode: bool,
    ) -> None:
        self.observation_space, self.random, self.recorder = observation_space, random, recorder
        self.when_untrusted, self.needs_decode = when_untrusted, needs_decode
        self.fit_at = -1
        """Real steps at the last fit; -1 before the first"""
        self.fit_rows = 0
        """The number of real transitions at the last fit"""
        self.trusted = False
        """The verdict: whether imagination may run"""
        self.judge_again = False
        """Whether the weights were changed from outside since the model was judged"""
        self.validated = False
        """Whether the model's outputs have been checked against the contract"""
        self.model_is_new = False
        """Whether the world model was replaced since the last fit"""
        self._warned: set[str] = set()

    # ---- when

    def due(self, model: WorldModel, rows: int, num_timesteps: int, fit_freq: int, enough: bool) -> bool:
        """
        Whether the model should be fitted now.

        First when there are enough rows, then every ``fit_freq`` real steps (counted by crossings, since steps come ``n_envs``
        at a time) and whenever the data has doubled. Not while there is less than half the data of the last fit: after
        ``load`` without the replay buffer, a refit on a few new rows would make the model forget what it knew.

        :param rows: the number of usable real transitions
        :param num_timesteps: real environment steps so far
        :param fit_freq: real steps between two fits
        :param enough: whether there are enough rows for a first fit
        """
        if rows == 0 or 2 * rows < self.fit_rows or (self.fit_at >= 0 and not model.learns):
            return False
        if self.fit_at < 0:
            return enough
        crossed = num_timesteps // fit_freq > self.fit_at // fit_freq
        return crossed or rows >= 2 * self.fit_rows

    def restart_clock(self) -> None:
        """Count real steps anew; the model and its verdict stay."""
        self.fit_at = min(self.fit_at, 0)

    # ---- fitting

    def fit(
        self,
        model: WorldModel,
        data: ReplayData,
        rows: Transitions,
        budget: FitBudget,
        *,
        starts: Starts,
        num_timesteps: int,
        horizon: int,
    ) -> dict[str, float]:
        """
        Fit the model, check its outputs the first time, and judge it.

        :param data: the model's view on the replay buffer
        :param rows: all its transitions
        :param budget: how long the fit may take
        :param starts: start states, for the check of the model's outputs
        :param num_timesteps: real environment steps so far
        :param horizon: the number of steps that the agent looks ahead
        :return: metrics to log under ``model/``
        """
        with self.recorder.phase("fit"), self.random.scope(model.device) as generator:
            metrics = self._k_step_metrics(model, data, rows, num_timesteps, horizon, generator)
            self.recorder.describe("fit")
            model.on_progress = self.recorder.describe
            try:
                trial = Trial(model, data, budget, fresh=self._fresh_steps(data, num_timesteps))
                if model.learns:
                    fitted = trial.fit(generator)
                    if fitted is not None:
                        validate_metrics(model, fitted)
                        metrics.update(fitted)
            finally:
                model.on_progress = None
                self.recorder.describe("")
            model.eval()
            if not self.validated:
                self._validate(model, rows, starts(2, generator), generator)
                if data.side is not None and model.needs_snapshot:
                    check_oracle(model, data.buffer, data.side, generator)
                self.validated = True
            metrics.update(self.judge(model, trial))
            metrics.update(trial.refit(generator))
        self.fit_at, self.fit_rows, self.model_is_new = num_timesteps, len(rows.reward), False
        return metrics

    def _validate(self, model: WorldModel, rows: Transitions, state: State, generator: th.Generator) -> None:
        """Check the shapes and types that the model returns on two rows, before they are relied on."""
        action = rows.action[:1].expand(2, -1).to(model.device)
        prediction = model.step(state, action, generator=generator)
        validate_prediction(model, state, action, prediction)
        if not model.decodes and not self.needs_decode:
            return
        decoded = model.decode(prediction.state)
        expected = tree_map(lambda leaf: leaf[:1].expand(2, *leaf.shape[1:]), rows.obs)
        got, wanted = describe(decoded), describe(expected)
        if got == wanted:
            got, wanted = (", ".join(str(leaf.dtype) for leaf in tree_leaves(obs)) for obs in (decoded, expected))
        if got != wanted:
            fault = Fault(
                f".decode returned {got}, expected {wanted}", "return observations as SB3's replay buffer stores them"
            )
            required = "`decode` returns members of the observation space"
            raise contract_error(type(model).__name__, model, fault, check="check_decode", required=required)

    # ---- judging

    def judge(self, model: WorldModel, trial: Trial) -> dict[str, float]:
        """
        Judge the model by rows that it has not learned from, and decide whether imagination may run.

        :return: metrics to log under ``model/``
        """
        self.judge_again = False
        rows = len(trial.data)
        if model.needs_snapshot or rows < 2:  # an oracle was compared with real rows by check_oracle
            self.trusted = rows >= 2
            return {}
        verdict = trial.evaluate()
        if verdict is None:  # nothing new to judge by: the last verdict stays
            return {}
        self.trusted = verdict.trusted
        if not self.trusted and rows >= WARN_AFTER_ROWS:
            error = verdict.metrics["vs_trivial"]
            self._warn(
                "untrusted",
                f"After {rows} real transitions the world model predicts no better than a trivial predictor: its squared "
                f"error relative to the better of copying the state and predicting the mean is {error:.2f} "
                f"(on so many rows it is trusted below {verdict.limit:.2f}). {self.when_untrusted} See model/ in the log.",
            )
        return dict(verdict.metrics)

    def judge_anew(self, model: WorldModel, data: ReplayData, budget: FitBudget, num_timesteps: int) -> None:
        """Judge a model whose weights were changed from outside, without a fit, and log the result."""
        trial = Trial(model, data, budget, fresh=self._fresh_steps(data, num_timesteps))
        self.recorder.record_all("model", self.judge(model, trial))

    def forget_verdict(self) -> None:
        """Trust nothing, and call nothing fresh: the world model is another one now."""
        self.trusted, self.model_is_new = False, True

    def _fresh_steps(self, data: ReplayData, num_timesteps: int) -> int | None:
        """Steps per environment since the last fit of this model; ``None`` before its first."""
        return None if self.fit_at < 0 or self.model_is_new else (num_timesteps - self.fit_at) // data.buffer.n_envs

    def _k_step_metrics(
        self,
        model: WorldModel,
        data: ReplayData,
        rows: Transitions,
        num_timesteps: int,
        horizon: int,
        generator: th.Generator,
    ) -> dict[str, float]:
        """Measure open-loop errors on steps that came after the last fit: the model has not seen them in any way."""
        fresh = (num_timesteps - self.fit_at) // data.buffer.n_envs
        unseen = self.fit_at >= 0 and model.fitted and fresh >= 1
        if not unseen or model.needs_snapshot or unsupported_by_vectors(self.observation_space):
            return {}
        codec = SpaceCodec(self.observation_space)
        variance = codec.encode(rows.next_obs).var(0, correction=0).to(model.device)
        metrics = {}
        for name, steps in (("1", 1), ("5", 5), ("h", horizon)):
            windows = data.newest(256, model.context - 1 + steps, within=fresh, generator=generator)
            if windows is not None:
                error, copy = k_step_error(model, codec, windows, variance)
                metrics[f"error_{name}"], metrics[f"copy_error_{name}"] = error, copy
        return metrics

    # ---- warnings, each once

    def warn_of_lost_terminations(self, model: WorldModel, optimize_memory_usage: bool, episodes: int) -> None:
        """
        Warn that terminations cannot be learned: with ``optimize_memory_usage`` the rows that end episodes are no training
        data (see :class:`~sb3_mbrl.buffers.ReplayData`).
        """
        if model.learns and model.termination_fn is None and optimize_memory_usage and episodes > 0:
            self._warn(
                "lost terminations",
                "optimize_memory_usage=True keeps no last observations of episodes, so the world model cannot learn when "
                "they end, and imagined ones never do. If episodes terminate, pass termination_fn=... or "
                "optimize_memory_usage=False.",
            )

    def warn_of_wrong_bounds(self, rows: Transitions) -> None:
        """Warn where real observations leave the space: imagined ones are members of it, so no prediction can be right."""
        if unsupported_by_vectors(self.observation_space):
            return
        codec = SpaceCodec(self.observation_space)
        seen = codec.encode(rows.next_obs)
        off = (seen - codec.project(seen)).abs()
        worst = int(off.max(0).values.argmax())
        row = int(off[:, worst].argmax())
        # Simulators overstep by rounding errors.
        if float(off[row, worst]) > 1e-3 * (1 + float(seen[row, worst].abs())):
            self._warn(
                "bounds",
                f"The environment leaves its observation space: {codec.names[worst]} was {float(seen[row, worst]):.4g}. "
                "Imagined observations are clipped to the space, so the world model cannot predict such states: correct the "
                "bounds.",
            )

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(message, ModelQualityWarning, stacklevel=5)

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in _SAVED}, "warned": sorted(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _SAVED:
            setattr(self, name, state[name])
        self._warned = set(state["warned"])


def check_oracle(model: WorldModel, buffer: ReplayBuffer, side: SideStore, generator: th.Generator) -> None:
    """
    Check on a few real rows that an oracle's environment is the one that the agent is in.

    :raises ValueError: when it repeats real transitions with another result
    """
    data = ReplayData(buffer, side, "snapshot")
    rows, envs = data.draw(min(16, len(data)), generator)
    real = tree_map(lambda leaf: leaf[:, 0], data.contexts_at(rows, envs, 1))
    known = ~real.is_last if buffer.optimize_memory_usage else th.ones_like(real.is_last)
    prediction = model.step(model.initial(real.obs, side.get("snapshot", rows, envs)), real.action.to(model.device))
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
