"""The trainer of a world model that is fitted apart from the policy: when to fit, fitting, judging, trusting."""

import math
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
from sb3_mbrl.diagnostics import ModelQualityWarning, k_step_error, variance_of
from sb3_mbrl.holdout import Trial, Verdict
from sb3_mbrl.plugins.faults import Fault, contract_error
from sb3_mbrl.plugins.validation import validate_metrics, validate_prediction
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import SpaceCodec, unsupported_by_vectors, whole_numbers
from sb3_mbrl.trees import State, describe, tree_leaves, tree_map

WARN_AFTER_ROWS = 500
"""The number of real rows from which on an untrusted model is warned of: with fewer it may simply need more data"""

_SAVED = ("fit_at", "fit_rows", "trusted", "judge_again", "validated", "model_is_new")
"""The attributes of a trainer that are saved"""

LARGE_SCALE = 1e4
"""How much larger than 1, and than another column, a column of the observations is that is worth a warning"""

STUCK_OF, STUCK_SHARE = 400, 0.95
"""The number of newest actions, and the share of them at a bound, from which on a policy counts as stuck"""

Starts = Callable[[int, th.Generator], State]
"""``starts(n, generator)``: ``n`` states of the world model to start from"""


class ModelTrainer(AgentObject):
    """
    The trainer of a world model: it fits the model when it is due, evaluates it on held-out rows, and keeps the verdict.

    :param observation_space: the observation space of the environment
    :param random: the random stream of fits and evaluations
    :param recorder: the log of phases and progress
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
        self._said: bool | None = None
        """The last verdict that was written to the log"""
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
        Tell whether the model should be fitted now.

        The first fit is due when there are enough rows, others every ``fit_freq`` real steps (when a multiple is passed, since
        steps come ``n_envs`` at a time) and whenever the data has doubled. None is due with less than half the data of the
        last fit: after ``load`` without the replay buffer, a refit on a few new rows would make the model forget what it knew.

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
        """Start counting real steps from 0; the model and its verdict stay."""
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
        :param budget: the limits of the fit
        :param starts: a function that draws start states, for the check of the model's outputs
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
            self._explain(metrics, trial.evaluated_first)
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
        self._say_verdict(rows, verdict)
        if not self.trusted and rows >= WARN_AFTER_ROWS:
            self._warn(
                "untrusted",
                f"After {rows} real transitions the world model predicts no better than a trivial predictor: its squared "
                "error relative to the better of copying the state and predicting the mean is "
                f"{verdict.metrics['vs_trivial']:.2f} (on so many rows it is trusted below {verdict.limit:.2f}; "
                f"{votes(verdict.metrics)}). {self.when_untrusted} See model/ in the log.",
            )
        return dict(verdict.metrics)

    def _say_verdict(self, rows: int, verdict: Verdict) -> None:
        """Write the first verdict to the log, and every one that differs from the last."""
        if self._said == self.trusted:
            return
        self._said = self.trusted
        relative = verdict.metrics["vs_trivial"]
        self.recorder.say(
            f"The world model is {'trusted' if self.trusted else 'not trusted'} after {rows} real transitions: its squared "
            f"error is {relative:.2f} of the better trivial predictor's ({votes(verdict.metrics)}), and on so many rows the "
            f"limit is {verdict.limit:.2f}.{'' if self.trusted else ' ' + self.when_untrusted}"
        )

    def _explain(self, metrics: Mapping[str, float], same_rows: bool) -> None:
        """
        Explain in the log why the verdict and the errors on fresh steps seem to contradict each other, where they do.

        :param metrics: what is logged of the fit
        :param same_rows: whether both are about the model before the fit, on the same rows
        """
        names = ("vs_trivial", "error_1", "copy_error_1")
        if any(name not in metrics for name in names):
            return
        verdict, error, copy = (metrics[name] for name in names)
        if self.trusted == (error < min(copy, 1.0)):
            return
        rows = (
            "error_1 is about the model before this fit, on the steps since the fit before, where the policy is now; "
            "vs_trivial is about the model after it, on rows held out of all data. "
        )
        self.recorder.say(
            f"model/vs_trivial = {verdict:.2f} ({votes(metrics)}) says that the world model is "
            f"{'better' if self.trusted else 'no better'} than a trivial predictor, and model/error_1 = {error:.2f} the "
            f"opposite (copying has {copy:.2f}, the mean 1). {'' if same_rows else rows}error_1 adds up squared errors of "
            "observations, of which one column can be the most; vs_trivial is a mean of ratios of at most 2, among them those "
            "of a learned reward and termination. Imagination follows vs_trivial."
        )

    def judge_anew(self, model: WorldModel, data: ReplayData, budget: FitBudget, num_timesteps: int) -> None:
        """Judge a model whose weights were changed from outside, without a fit, and log the result."""
        trial = Trial(model, data, budget, fresh=self._fresh_steps(data, num_timesteps))
        self.recorder.record_all("model", self.judge(model, trial))

    def forget_verdict(self) -> None:
        """Forget the verdict, and which steps are new to the model, because the world model has been replaced."""
        self.trusted, self.model_is_new = False, True

    def _fresh_steps(self, data: ReplayData, num_timesteps: int) -> int | None:
        """Return the number of steps per environment since the last fit of this model; ``None`` before its first fit."""
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
        variance = variance_of(codec, rows.next_obs).to(model.device)
        metrics = {}
        for name, steps in (("1", 1), ("5", 5), ("h", horizon)):
            windows = data.newest(256, model.context - 1 + steps, within=fresh, generator=generator)
            if windows is not None:
                error, copy = k_step_error(model, codec, windows, variance)
                if not math.isnan(copy):  # all windows end in a termination
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
        codec = self._numbers()
        if codec is None:
            return
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

    def warn_of_scales(self, rows: Transitions) -> None:
        """Warn of a column of the observations that is far larger than another: networks of policies learn badly from it."""
        codec = self._numbers()
        if codec is None:
            return
        scale = codec.encode(rows.obs).double().square().mean(0).sqrt()  # the root mean square of every column
        used = scale > 0
        if not bool(used.any()):
            return
        largest, smallest = int(scale.argmax()), int(scale.masked_fill(~used, math.inf).argmin())
        if float(scale[largest]) > LARGE_SCALE and float(scale[largest] / scale[smallest]) > LARGE_SCALE:
            self._warn(
                "scales",
                f"The observations have very different scales: {codec.names[largest]} is about {float(scale[largest]):.1g}, "
                f"{codec.names[smallest]} about {float(scale[smallest]):.1g}. Networks hardly see the small ones: divide "
                f"{codec.names[largest]} in the environment, or wrap the environment in VecNormalize.",
            )

    def warn_of_stuck_actions(self, rows: Transitions, action_space: spaces.Space, chosen: int) -> None:
        """
        Warn of a policy that is stuck at the bounds of its actions.

        :param rows: all real transitions, oldest first
        :param chosen: the number of real steps so far whose actions came from the policy
        """
        if not isinstance(action_space, spaces.Box) or whole_numbers(action_space):  # of 0 and 1 both are bounds
            return
        n = min(chosen, len(rows.action), STUCK_OF)
        if n < STUCK_OF // 2:
            return
        share = (rows.action[-n:].flatten(1).abs() > 0.99).double().mean(0)
        worst = int(share.argmax())
        if float(share[worst]) > STUCK_SHARE:
            self._warn(
                "stuck",
                f"The policy is stuck at the bounds of its actions: action[{worst}] was at a bound in "
                f"{float(share[worst]):.0%} of the last {n} real steps. If that is not the best behaviour, rewards or "
                "observations are too large for its networks: divide them in the environment or wrap it in VecNormalize, and "
                "begin anew.",
            )

    def _numbers(self) -> SpaceCodec | None:
        """Return a codec of the continuous parts of the observations alone; ``None`` if there are none, or images."""
        space = self.observation_space
        if unsupported_by_vectors(space):
            return None
        if not isinstance(space, spaces.Dict):
            return SpaceCodec(space) if isinstance(space, spaces.Box) else None
        boxes: dict[str, spaces.Space] = {key: child for key, child in space.spaces.items() if isinstance(child, spaces.Box)}
        return SpaceCodec(spaces.Dict(boxes)) if boxes else None

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


def votes(metrics: Mapping[str, float]) -> str:
    """Write the parts of a verdict: ``observations 0.31, reward 1.00``."""
    names = {"obs": "observations", "reward": "reward", "term": "termination"}
    parts = [f"{name} {metrics[f'vs_trivial_{key}']:.2f}" for key, name in names.items() if f"vs_trivial_{key}" in metrics]
    return ", ".join(parts) or "nothing varies"


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
