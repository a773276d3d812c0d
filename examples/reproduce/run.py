"""One run of one learning benchmark, resumable: ``python examples/reproduce/run.py pendulum --variant mbpo --seed 0``.

After every evaluation the JSON file is replaced and a checkpoint is written: the same command resumes an interrupted run.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import math
import pickle
import platform
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from agents import algorithm, as_arguments
from records import CHECKPOINTS, RESULTS, Record, clean_label, reached_at, read_record, run_name, write_record
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tasks import TASKS, VARIANTS, Task, changes, conditions, constructor_settings, override, parse_overrides

import sb3_mbrl

EVALUATION_SEED = 10_000
"""The first reset seed of evaluation episodes; they use 10000, 10001, ... in every run"""

LOGGED = ("model/", "imagination/", "planner/", "train/entropy", "train/return_", "train/n_updates")
"""Prefixes of the metrics that are copied from the log to the record"""


class SettingsChangedError(ValueError):
    """An error for a run whose name is taken, in the results folder, by a run with other settings."""


@dataclass(frozen=True)
class Run:
    """
    A run of one variant of a task with one seed.

    :param task: the task, with its overrides applied
    :param variant: one of ``VARIANTS``
    :param seed: the seed of agent and training environment
    :param settings: the keyword arguments of the constructor
    :param label: the label of a tuning run
    :param results: the folder of the JSON files
    :param checkpoints: the folder of the checkpoints
    :param device: the PyTorch device, as in SB3
    """

    task: Task
    variant: str
    seed: int
    settings: Mapping[str, Any]
    label: str | None = None
    results: Path = RESULTS
    checkpoints: Path = CHECKPOINTS
    device: str = "cpu"

    @property
    def name(self) -> str:
        return run_name(self.variant, self.seed, self.label)

    @property
    def path(self) -> Path:
        return self.results / self.task.name / f"{self.name}.json"

    @property
    def checkpoint_dir(self) -> Path:
        return self.checkpoints / self.task.name / self.name

    def conditions(self) -> Record:
        """Collect the values that must be the same for the run to be continued."""
        return conditions(self.task, self.variant, self.seed, self.settings, self.label, self.device)


def make_run(
    task: Task, variant: str, seed: int, overrides: Mapping[str, Any] | None = None, label: str | None = None, **kwargs: Any
) -> Run:
    """Make a run; without a label, it is labelled by its overrides, if any."""
    overrides = dict(overrides or {})
    task = override(task, overrides)
    if label is None and overrides:
        label = ",".join(f"{key}={value}" for key, value in overrides.items())
    settings = constructor_settings(task, variant, overrides)
    return Run(task, variant, seed, settings, clean_label(label) if label else None, **kwargs)


# ------------------------------------------------------------------------------------------------------------- provenance


def versions() -> dict[str, str]:
    """Collect the versions of everything that influences the result."""
    result = {
        "sb3_mbrl": sb3_mbrl.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": torch.__version__,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    try:
        import mujoco
    except ImportError:
        return result
    return result | {"mujoco": mujoco.__version__}


def source_digest() -> str:
    """Hash the library's code: a version number alone does not distinguish two states of a checkout."""
    digest = hashlib.sha256()
    root = Path(sb3_mbrl.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """Describe the CPU, without anything that identifies the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}


# ------------------------------------------------------------------------------------------------------------- evaluation


def random_states() -> dict[str, Any]:
    """Read the states of the global random streams."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore the states that :func:`random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the global random streams at the end of the block, so that draws inside do not change the training."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def evaluate(agent: OffPolicyAlgorithm, env: gym.Env, episodes: int) -> list[float]:
    """
    Play episodes with the deterministic policy, from the same start states every time, without any effect on training.

    :param agent: the agent
    :param env: an environment that is not the training environment
    :param episodes: the number of episodes
    :return: the return of every episode
    """
    returns = []
    training = agent.policy.training
    with random_states_kept():
        for episode in range(episodes):
            obs, _ = env.reset(seed=EVALUATION_SEED + episode)
            total, over, memory, first = 0.0, False, None, np.array([True])
            while not over:
                action, memory = agent.predict(obs, memory, first, deterministic=True)
                first = np.array([False])
                obs, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                over = terminated or truncated
            returns.append(total)
    agent.policy.set_training_mode(training)
    return returns


def evaluate_together(agent: OffPolicyAlgorithm, envs: Sequence[gym.Env]) -> list[float]:
    """
    Play one episode in each environment, all at once, as :func:`evaluate` does one after the other: for agents whose decisions
    are searches, which cost little more for many environments than for one. The policy must have no memory.

    :param agent: the agent
    :param envs: environments that are not the training environment
    :return: the return of every episode
    """
    training = agent.policy.training
    with random_states_kept():
        obs = [env.reset(seed=EVALUATION_SEED + episode)[0] for episode, env in enumerate(envs)]
        returns, running = [0.0] * len(envs), list(range(len(envs)))
        while running:
            actions, _ = agent.predict(np.stack([obs[episode] for episode in running]), deterministic=True)
            for episode, action in zip(tuple(running), actions, strict=True):
                obs[episode], reward, terminated, truncated, _ = envs[episode].step(action)
                returns[episode] += float(reward)
                if terminated or truncated:
                    running.remove(episode)
    agent.policy.set_training_mode(training)
    return returns


# ------------------------------------------------------------------------------------------------------------ checkpoints


def save_checkpoint(agent: OffPolicyAlgorithm, folder: Path) -> None:
    """Write a checkpoint of this step, then delete the older ones. Under its final name it is always complete."""
    step = agent.num_timesteps
    final, unfinished = folder / f"step-{step:09d}", folder / f"unfinished-{step:09d}"
    for leftover in (final, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    agent.save(unfinished / "agent.zip")
    agent.save_replay_buffer(unfinished / "replay_buffer.pkl")
    with (unfinished / "random_states.pkl").open("wb") as file:
        pickle.dump(random_states(), file)
    unfinished.rename(final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other)


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the last complete checkpoint."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(cls: type[OffPolicyAlgorithm], folder: Path, env: Any, device: str) -> OffPolicyAlgorithm:
    """
    Load the agent with its replay buffer, and restore the random streams.

    The environment's own state is not saved: a resumed run begins a new episode, so the last stored transition is marked as
    the end of an episode by a time limit.
    """
    agent = cls.load(folder / "agent.zip", env=env, device=device)
    agent.load_replay_buffer(folder / "replay_buffer.pkl")
    buffer: Any = agent.replay_buffer
    if buffer.pos or buffer.full:
        last = (buffer.pos - 1) % buffer.buffer_size
        buffer.timeouts[last] = np.where(buffer.dones[last] > 0, buffer.timeouts[last], 1.0)
        buffer.dones[last] = 1.0
    # Loading seeds everything as at the start, but the resumed part must not repeat the first episodes and the first noise.
    assert agent.env is not None
    agent.env.seed((agent.seed or 0) + agent.num_timesteps)
    with (folder / "random_states.pkl").open("rb") as file:
        set_random_states(pickle.load(file))
    return agent


# ----------------------------------------------------------------------------------------------------------------- the run


class BenchmarkCallback(BaseCallback):
    """
    A callback that evaluates (or notes the episodes of training) and writes the record and a checkpoint. It does so between
    two rollouts, where agent and replay buffer are complete (in ``_on_step`` the latest transition is not stored yet).

    :param run: the run
    :param record: the run's record; points are appended to its curve
    :param on_evaluation: a function that is called with the record after each evaluation has been written
    """

    def __init__(self, run: Run, record: Record, on_evaluation: Callable[[Record], None] | None = None) -> None:
        super().__init__()
        self.run, self.record, self.on_evaluation = run, record, on_evaluation
        self.eval_env = gym.make(run.task.env_id, **run.task.env_kwargs)
        curve = record["curve"]
        self.wall = curve[-1]["wall_s"] if curve else 0.0
        self.next_step = curve[-1]["step"] + run.task.eval_every if curve else 0
        self.since = 0.0
        self.episode: float | None = None
        """The return of the training episode that has just ended, if any"""

    def _on_training_start(self) -> None:
        self.since = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self._evaluate_if_due()

    def _on_step(self) -> bool:
        episode = self.locals["infos"][0].get("episode")
        if episode is not None:
            self.episode = float(episode["r"])
        return True

    def _on_training_end(self) -> None:
        self._evaluate_if_due()
        if self.record["curve"] and self.num_timesteps >= self.run.task.total_steps and not self.record["finished"]:
            # The steps ended in the middle of an episode, which does not count.
            self.record["finished"] = True
            write_record(self.run.path, self.record)
        self.eval_env.close()

    def _evaluate_if_due(self) -> None:
        agent = self.model
        assert isinstance(agent, OffPolicyAlgorithm)
        if self.run.task.eval_episodes == 0:
            if self.episode is not None:
                self.wall += time.perf_counter() - self.since
                self._write(agent, [self.episode])
                self.episode = None
        elif self.num_timesteps >= self.next_step:
            self.wall += time.perf_counter() - self.since
            self._write(agent, self._play(agent, self.run.task.eval_episodes))

    def _play(self, agent: OffPolicyAlgorithm, episodes: int) -> list[float]:
        if not isinstance(agent, sb3_mbrl.MuZero):
            return evaluate(agent, self.eval_env, episodes)
        return evaluate_together(agent, [gym.make(self.run.task.env_id, **self.run.task.env_kwargs) for _ in range(episodes)])

    def _write(self, agent: OffPolicyAlgorithm, returns: list[float]) -> None:
        task, record = self.run.task, self.record
        logged = {name: value for name, value in agent.logger.name_to_value.items() if name.startswith(LOGGED)}
        record["curve"].append(
            {
                "step": agent.num_timesteps,
                "mean": float(np.mean(returns)),
                "returns": returns,
                "wall_s": round(self.wall, 3),
                "phase_seconds": {name: round(value, 3) for name, value in getattr(agent, "phase_seconds", {}).items()},
                "logged": {name: _json_number(logged[name]) for name in sorted(logged)},
            }
        )
        steps, means = ([point[name] for point in record["curve"]] for name in ("step", "mean"))
        record["reached_at"] = reached_at(steps, means, task.threshold, task.in_a_row)
        record["finished"] = agent.num_timesteps >= task.total_steps
        write_record(self.run.path, record)
        if agent.num_timesteps > 0:
            save_checkpoint(agent, self.run.checkpoint_dir)
        self.next_step += task.eval_every
        if self.on_evaluation is not None:
            self.on_evaluation(record)
        self.since = time.perf_counter()


def _json_number(value: Any) -> float | None:
    """Replace NaN and infinity, which JSON does not have, with ``None``."""
    return float(value) if math.isfinite(float(value)) else None


def _start_or_resume(run: Run, fresh: bool) -> tuple[Record, Path | None]:
    """Choose the record to append to, and the checkpoint to continue from."""
    record = None if fresh else read_record(run.path)
    if record is not None:
        changed = changes(record, run.conditions())
        if changed:
            differences = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
            raise SettingsChangedError(
                f"{run.path} is from a run with other settings: {differences}. Give --label to make another run, or "
                "--fresh to replace it."
            )
        checkpoint = newest_checkpoint(run.checkpoint_dir)
        if record["finished"]:
            return record, None
        if checkpoint is not None:
            step = int(checkpoint.name.removeprefix("step-"))
            kept = [point for point in record["curve"] if point["step"] <= step]
            if kept and kept[-1]["step"] == step:
                record["curve"] = kept
                record["resumed_at"].append(step)
                record["sources"] = list(dict.fromkeys([*record.get("sources", []), source_digest()]))
                return record, checkpoint
    shutil.rmtree(run.checkpoint_dir, ignore_errors=True)
    provenance = {
        "versions": versions(),
        "sources": [source_digest()],
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }
    return run.conditions() | provenance | {"reached_at": None, "finished": False, "resumed_at": [], "curve": []}, None


def execute(run: Run, fresh: bool = False, on_evaluation: Callable[[Record], None] | None = None) -> Record:
    """
    Do the run, or the rest of it.

    :param run: the run
    :param fresh: whether to start again and ignore an existing record
    :param on_evaluation: a function that is called with the record after each evaluation has been written
    :return: the record, as in the file
    """
    record, checkpoint = _start_or_resume(run, fresh)
    if record["finished"]:
        return record
    cls = algorithm(run.task, run.variant)
    env: Any = gym.make(run.task.env_id, **run.task.env_kwargs)
    if run.task.n_envs > 1:
        env.close()
        env = make_vec_env(run.task.env_id, run.task.n_envs, env_kwargs=dict(run.task.env_kwargs))
    if checkpoint is None:
        settings = as_arguments(run.settings, env.action_space)
        agent: OffPolicyAlgorithm = cls("MlpPolicy", env, seed=run.seed, device=run.device, **settings)
    else:
        agent = load_checkpoint(cls, checkpoint, env, run.device)
    # No log folder, and never dumped, so that the latest metrics can be read at any time.
    agent.set_logger(Logger(folder=None, output_formats=[]))
    callback = BenchmarkCallback(run, record, on_evaluation)
    left = run.task.total_steps - agent.num_timesteps
    agent.learn(left, callback=callback, log_interval=sys.maxsize, reset_num_timesteps=checkpoint is None)
    env.close()
    return record


# ------------------------------------------------------------------------------------------------------------ command line


def _print_progress(record: Record) -> None:
    point = record["curve"][-1]
    phases = " ".join(f"{name} {seconds:.0f}s" for name, seconds in point["phase_seconds"].items())
    name = run_name(record["variant"], record["seed"], record["label"])
    step = f"step {point['step']}/{record['total_steps']}"
    print(f"{record['task']} {name}: {step} mean {point['mean']:.1f} wall {point['wall_s']:.0f}s {phases}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--variant", choices=VARIANTS, help="default: the task's algorithm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings (a tuning run)"
    )
    parser.add_argument("--label", help="label of a tuning run's file (default: its changed settings)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="start again, and replace an existing run")
    args = parser.parse_args(argv)
    # Turn SIGTERM into SystemExit, so that a temporary file is removed when the run is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(args.threads)
    folders = {"results": args.results, "checkpoints": args.checkpoints, "device": args.device}
    task = TASKS[args.task]
    variant = args.variant or task.algo
    if variant not in task.variants:
        parser.error(f"--variant {variant}: {task.name} has {', '.join(task.variants)}")
    run = make_run(task, variant, args.seed, parse_overrides(args.set), args.label, **folders)
    try:
        record = execute(run, args.fresh, _print_progress)
    except SettingsChangedError as error:
        raise SystemExit(str(error)) from error
    reached = "" if record["threshold"] is None else f", threshold {record['threshold']:g} reached at {record['reached_at']}"
    print(f"{run.task.name} {run.name}: finished{reached}", flush=True)


if __name__ == "__main__":
    main()
