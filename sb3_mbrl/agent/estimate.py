"""The cost of a run before it begins: updates, the seconds that each takes here, and the memory of the buffers.

The seconds are measured in a trial on a copy of the agent, which learns from random rows: no step of the environment is taken,
and neither the agent nor a random stream is touched.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget, RolloutImagination
from sb3_mbrl.fitting import fit_world_model
from sb3_mbrl.planners.policy import PlannerPolicy
from sb3_mbrl.rng import RandomStream

TRIAL_ROWS = 512
"""The number of random rows that a trial learns from; more where a sequence needs more"""

TRIAL_BATCHES = 32
"""The number of gradient steps of a trial fit"""

TRIAL_SECONDS = 0.5
"""The seconds for which each thing is repeated to be timed"""

TRIAL_LONG = 20.0
"""The seconds above which a thing is not repeated"""

WIDE = 10.0
"""Random observations stay within this bound, whatever the space allows, so that a trial's numbers stay finite"""


@dataclass(frozen=True)
class Costs:
    """
    Seconds that were measured in a trial; ``None``: not measured, or there is no such thing.

    :param update: the seconds of an update of the policy
    :param decision: the seconds of planning one action for every environment
    :param batch: the seconds of a gradient step of a fit of the world model
    :param failure: the reason why the trial failed; an empty string: it did not
    """

    update: float | None = None
    decision: float | None = None
    batch: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Estimate:
    """
    The cost of a run.

    :param steps: the number of real steps
    :param learning_steps: the number of those after which the agent learns
    :param updates_per_step: the number of updates per real step; ``None``: it is not fixed (``train_freq`` in episodes)
    :param decisions: the number of times that the agent plans
    :param fits: the number of fits of the world model, about
    :param fit_batches: the largest number of gradient steps of a fit; ``None``: no limit
    :param memory: the bytes of each buffer when it is full
    :param costs: the seconds of each
    """

    steps: int
    learning_steps: int
    updates_per_step: float | None
    decisions: int = 0
    fits: int = 0
    fit_batches: int | None = None
    memory: dict[str, int] = field(default_factory=dict)
    costs: Costs = Costs()

    @property
    def updates(self) -> int | None:
        """The number of updates of the whole run"""
        return None if self.updates_per_step is None else int(self.updates_per_step * self.learning_steps)

    @property
    def step_seconds(self) -> float | None:
        """The seconds of a real step after which the agent learns, without fits; ``None`` where nothing was measured"""
        updates = (self.updates_per_step or 0.0) * (self.costs.update or 0.0)
        decisions = (self.costs.decision or 0.0) * self.decisions / max(self.learning_steps, 1)
        return updates + decisions or None

    @property
    def fit_seconds(self) -> float:
        """The largest number of seconds of a fit; 0 where it is not known"""
        return (self.costs.batch or 0.0) * (self.fit_batches or 0)

    def lines(self) -> list[str]:
        """Describe the estimate, one thing per line."""
        waits = self.steps - self.learning_steps
        lines = [f"{self.steps:,} real steps" + (f", the first {waits:,} of them without learning" if waits else "")]
        if self.updates:
            each = f"{self.updates_per_step:,.4g} per real step"
            lines.append(f"updates: {self.updates:,} ({each}){_times(self.costs.update, self.updates)}")
        if self.decisions:
            lines.append(f"planning: {self.decisions:,} decisions{_times(self.costs.decision, self.decisions)}")
        if self.fits:
            most = "until they no longer improve" if self.fit_batches is None else f"of at most {self.fit_batches:,} batches"
            total = "" if self.fit_batches is None else _times(self.costs.batch, self.fits * self.fit_batches, "at most ")
            each = f", {duration(self.costs.batch)} a batch" if self.costs.batch and self.fit_batches is None else total
            lines.append(f"world model: about {self.fits:,} fits {most}{each}")
        if self.memory:
            parts = ", ".join(f"{name} {size(n)}" for name, n in self.memory.items())
            lines.append(f"memory of the buffers when they are full: {parts}")
        if self.costs.failure:
            lines.append(f"no times, since the trial failed: {self.costs.failure}")
        elif self.costs != Costs():
            lines.append("Times are from a short trial on this machine; the environment and imagination come on top.")
        return lines


def updates_per_step(agent: Any) -> float | None:
    """
    Compute the updates of the policy per real step; ``None`` where they are not fixed.

    In SB3 ``gradient_steps`` updates follow ``train_freq`` steps of *all* environments, so the ratio falls with their number.
    """
    if not agent.makes_updates:
        return 0.0
    if agent.gradient_steps < 0:  # SB3: as many updates as there were steps
        return 1.0
    if agent.train_freq.unit is not TrainFrequencyUnit.STEP:
        return None
    return float(agent.gradient_steps / (agent.train_freq.frequency * agent.n_envs))


def describe_pace(agent: Any) -> str | None:
    """
    Say in a line how many updates per real step several environments make.

    :return: the line; ``None`` where one environment makes as many, and for ``gradient_steps=n_envs``, SB3's own idiom, which
        shows that the user has thought of it
    """
    ratio = updates_per_step(agent)
    if not ratio or agent.n_envs == 1 or agent.gradient_steps < 1 or agent.gradient_steps == agent.n_envs:
        return None
    alone = ratio * agent.n_envs
    return (
        f"gradient_steps={agent.gradient_steps} with {agent.n_envs} environments: {ratio:.4g} updates per real step, where "
        f"one environment would make {alone:.4g}. gradient_steps={agent.gradient_steps * agent.n_envs} makes it {alone:.4g}."
    )


def estimate(agent: Any, total_timesteps: int, costs: Costs | None = None) -> Estimate:
    """
    Estimate the cost of a run.

    :param agent: an :class:`~sb3_mbrl.agent.agent.OffPolicyAgent`
    :param total_timesteps: the number of real steps at the end of the run, those before it included
    :param costs: seconds from an earlier trial; ``None``: measured now
    """
    now, n_envs = agent.num_timesteps, agent.n_envs
    learning = max(0, total_timesteps - max(now, agent.learning_starts))
    plans = isinstance(agent.policy, PlannerPolicy)
    fits, batches = 0, None
    if agent.trainer is not None and agent.world_model is not None and agent.world_model.learns and learning:
        start = max(now, agent.learning_starts)
        # At every multiple of fit_freq, and at the first step.
        fits = 1 + total_timesteps // agent.fit_freq - start // agent.fit_freq
        batches = FitBudget(**agent.fit_kwargs or {}).max_batches
    return Estimate(
        steps=max(0, total_timesteps - now),
        learning_steps=learning,
        updates_per_step=updates_per_step(agent),
        decisions=math.ceil(learning / n_envs) if plans else 0,
        fits=fits,
        fit_batches=batches,
        memory=memory(agent, total_timesteps),
        costs=measure(agent) if costs is None else costs,
    )


# ---- memory


def memory(agent: Any, total_timesteps: int) -> dict[str, int]:
    """Compute the bytes of an agent's buffers when they are full, by name."""
    buffer = agent.replay_buffer
    if buffer is None:
        return {}
    result = {"replay buffer": sum(_bytes(value) for value in vars(buffer).values())}
    side = agent.side_row_bytes() * buffer.buffer_size * buffer.n_envs
    if side:
        result["latent states"] = side
    imagination = getattr(agent, "imagination", None)
    if isinstance(imagination, RolloutImagination):
        horizon = max(imagination.horizon(agent.num_timesteps), imagination.horizon(total_timesteps))
        # The rows that the age limit keeps: starts_per_step a real step, each of so many steps.
        rows = int(imagination.starts_per_step * min(imagination.max_age, total_timesteps) * horizon)
        result["imagined transitions"] = rows * _row_bytes(buffer)
    return result


def _bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return sum(_bytes(child) for child in value.values()) if isinstance(value, dict) else 0


def _row_bytes(buffer: ReplayBuffer) -> int:
    """The bytes of an imagined row: two observations, an action, a reward and a termination (four bytes each)."""
    observations: Any = buffer.observations
    parts = observations.values() if isinstance(observations, dict) else [observations]
    one = sum(int(np.prod(part.shape[2:])) * part.dtype.itemsize for part in parts)
    return 2 * one + 4 * int(np.prod(buffer.actions.shape[2:])) + 8


# ---- the trial


def measure(agent: Any) -> Costs:
    """Measure in a trial how long an update, a decision and a batch of a fit take. A failure is part of the result."""
    try:
        with _undisturbed(agent.device):
            twin = _twin(agent)
            return Costs(_update_seconds(twin), _decision_seconds(twin), _batch_seconds(twin))
    except (
        Exception
    ) as error:  # whatever a user's own parts raise: said in the estimate, and again in the run where it matters
        return Costs(failure=" ".join(f"{type(error).__name__}: {error}".split()))


@contextmanager
def _undisturbed(device: th.device) -> Iterator[None]:
    """Leave the global random streams of Python, NumPy and torch as they were."""
    before = random.getstate(), np.random.get_state()
    try:
        with RandomStream(0).scope(device):
            np.random.seed(0)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _twin(agent: Any) -> Any:
    """Copy an agent without its environment, with a small replay buffer of random rows."""
    rows = max(math.ceil(TRIAL_ROWS / agent.n_envs), 2 * getattr(agent, "batch_length", 0) + 2)
    small = _random_buffer(agent, rows)
    augmenter = getattr(agent, "augmenter", None)
    left_out = [agent.env, agent._vec_normalize_env, agent.real.side, None if augmenter is None else augmenter.imagined]
    memo: dict[int, Any] = {id(value): None for value in left_out if value is not None}
    memo[id(agent.replay_buffer)] = small
    for name in ("_last_obs", "_last_original_obs", "ep_info_buffer", "ep_success_buffer"):
        memo[id(vars(agent).get(name))] = None
    twin = copy.deepcopy(agent, memo)
    twin.set_logger(Logger(None, []))
    twin.recorder.progress = None
    twin.forget_side_store()
    return twin


def _random_buffer(agent: Any, rows: int) -> ReplayBuffer:
    kind = DictReplayBuffer if isinstance(agent.observation_space, spaces.Dict) else ReplayBuffer
    buffer = kind(rows * agent.n_envs, agent.observation_space, agent.action_space, agent.device, agent.n_envs)
    rng, n = np.random.default_rng(0), agent.n_envs
    actions = agent.action_space
    if isinstance(actions, spaces.Box):  # SB3 stores them scaled
        actions = spaces.Box(-1.0, 1.0, actions.shape)
    obs = _sample(agent.observation_space, n, rng)
    for row in range(rows):
        following = _sample(agent.observation_space, n, rng)
        done = np.full(n, row % 50 == 49)
        infos = [{"TimeLimit.truncated": bool(end)} for end in done]
        buffer.add(obs, following, _sample(actions, n, rng), rng.normal(size=n), done, infos)
        obs = following
    return buffer


def _sample(space: spaces.Space, n: int, rng: np.random.Generator) -> Any:
    """Draw ``n`` members of a space; numbers that may be of any size stay small."""
    if isinstance(space, spaces.Dict):
        return {key: _sample(child, n, rng) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            low, high = (
                np.maximum(space.low, np.minimum(-WIDE, space.high)),
                np.minimum(space.high, np.maximum(WIDE, space.low)),
            )
            return rng.uniform(low, high, (n, *space.shape)).astype(space.dtype)
        # Compared as floats: small types cannot hold these bounds.
        low = np.maximum(space.low.astype(float), -128).astype(np.int64)
        high = np.minimum(space.high.astype(float), 255).astype(np.int64)
        return rng.integers(low, np.maximum(high, low) + 1, (n, *space.shape)).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return int(space.start) + rng.integers(int(space.n), size=n)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + rng.integers(space.nvec, size=(n, *space.shape))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=(n, *space.shape))
    raise TypeError(f"there are no random members of {space}")


def _seconds(step: Callable[[], Any], device: th.device) -> float:
    """Time a step: the mean of several after a first one; a very long one just once."""

    def run() -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            th.cuda.synchronize(device)
        return time.perf_counter() - start

    first = run()
    if first > TRIAL_LONG:
        return first
    times = [run()]  # the first time may have compiled something
    while sum(times) < TRIAL_SECONDS and len(times) < 20:
        times.append(run())
    return sum(times) / len(times)


def _update_seconds(twin: Any) -> float | None:
    if not twin.makes_updates or not twin.gradient_steps:
        return None
    return _seconds(lambda: twin.trial_update(twin.batch_size), twin.device)


def _decision_seconds(twin: Any) -> float | None:
    policy = twin.policy
    if not isinstance(policy, PlannerPolicy):
        return None
    twin.world_model.fitted = True  # as after the first fit; the values do not change the time
    obs, _ = policy.obs_to_tensor(_sample(twin.observation_space, twin.n_envs, np.random.default_rng(0)))
    first = th.ones(twin.n_envs, dtype=th.bool)
    generator = th.Generator().manual_seed(0)
    return _seconds(lambda: policy.act(obs, None, first, generator=generator), twin.device)


def _batch_seconds(twin: Any) -> float | None:
    model = twin.world_model
    if (
        twin.trainer is None or model is None or not model.learns or model.optimizer is None
    ):  # models without one fit in ways of their own
        return None
    budget = replace(FitBudget(**twin.fit_kwargs or {}), max_batches=TRIAL_BATCHES, max_epochs=None)
    start = time.perf_counter()
    metrics = fit_world_model(model, ReplayData(twin.replay_buffer), budget, generator=th.Generator().manual_seed(0))
    return (time.perf_counter() - start) / max(metrics.get("batches", TRIAL_BATCHES), 1.0)


# ---- words


def _times(each: float | None, n: int, most: str = "") -> str:
    return "" if each is None else f", {duration(each)} each: {most}{duration(each * n)}"


def duration(seconds: float) -> str:
    """Put a duration into words: ``"1.2 ms"``, ``"45 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds * 1e3:.0f} ms"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if seconds >= 10 * unit else 1}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def size(n: float) -> str:
    """Put a number of bytes into words: ``"34 MB"``."""
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
