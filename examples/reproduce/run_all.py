"""All runs of some learning benchmarks: ``python examples/reproduce/run_all.py pendulum halfcheetah --workers 2``.

Finished runs are skipped and interrupted ones resumed, so the same command can be given again at any time. The first seed of
every variant comes first: whenever the command is stopped, the variants have had about the same number of runs.
"""

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from records import CHECKPOINTS, HERE, RESULTS, Record, clean_label, read_record, run_name
from tasks import TASKS, VARIANTS, Task, changes, conditions, constructor_settings, override, parse_overrides

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
POLL_SECONDS = 0.5
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Job:
    """A run; ``path`` is its result file, ``conditions`` the values that the file must contain."""

    task: str
    variant: str
    seed: int
    path: Path
    total_steps: int
    conditions: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.task} {self.path.stem}"


def plan_jobs(
    tasks: Sequence[Task],
    variants: Sequence[str] | None,
    results: Path,
    seeds: Sequence[int] | None = None,
    label: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Job]:
    """
    List all runs in order: seeds outermost, variants innermost.

    :param tasks: the tasks
    :param variants: the variants to run, where a task has them; ``None``: all
    :param results: the folder of the result files
    :param seeds: the seeds to use instead of each task's own
    :param label: the label of a tuning run
    :param overrides: the changed settings of a tuning run
    """
    overrides = dict(overrides or {})
    tasks = [override(task, overrides) for task in tasks]
    rounds = zip_longest(*([(task, seed) for seed in seeds or task.seeds] for task in tasks))
    jobs = []
    for task, seed in filter(None, chain.from_iterable(rounds)):
        for variant in task.variants if variants is None else (one for one in variants if one in task.variants):
            expected = conditions(task, variant, seed, constructor_settings(task, variant, overrides), label)
            path = results / task.name / f"{run_name(variant, seed, label)}.json"
            jobs.append(Job(task.name, variant, seed, path, task.total_steps, expected))
    return jobs


def is_changed(job: Job) -> bool:
    """Check whether the result file is from a run with other settings than the current ones."""
    record = read_record(job.path)
    return record is not None and bool(changes(record, job.conditions))


def is_finished(job: Job) -> bool:
    """Check whether a run is finished, with the current settings."""
    record = read_record(job.path)
    return record is not None and record["finished"] and not is_changed(job)


# -------------------------------------------------------------------------------------------------------------- time left


def _pace(records: Iterable[Record]) -> float | None:
    """Compute seconds per real step. Early steps are fast (no updates yet), so only runs that are at least half done count."""
    paces = [
        record["curve"][-1]["wall_s"] / record["curve"][-1]["step"]
        for record in records
        if _steps(record) * 2 >= record["total_steps"]
    ]
    return statistics.median(paces) if paces else None


def _steps(record: Record | None) -> int:
    return record["curve"][-1]["step"] if record is not None and record["curve"] else 0


def seconds_left(jobs: Sequence[Job], workers: int) -> float | None:
    """
    Estimate the time left from the result files: the steps left, at the pace of the same task and variant, else of the task.

    :param jobs: the unfinished runs
    :param workers: the number of runs at a time
    :return: the seconds; ``None`` if no similar run has been made yet
    """
    total = 0.0
    for job in jobs:
        records = [record for record in map(read_record, sorted(job.path.parent.glob("*.json"))) if record is not None]
        pace = _pace(record for record in records if record["variant"] == job.variant)
        pace = _pace(records) if pace is None else pace
        if pace is None:
            return None
        total += pace * (job.total_steps - (0 if is_changed(job) else _steps(read_record(job.path))))
    return total / max(min(workers, len(jobs)), 1)


def duration(seconds: float | None) -> str:
    """Format a duration."""
    if seconds is None:
        return "an unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ---------------------------------------------------------------------------------------------------------------- working


def command_of(job: Job, passed_on: Sequence[str]) -> list[str]:
    """Make the command line of one run, with low priority if the system has ``nice``."""
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    script = [sys.executable, str(HERE / "run.py"), job.task, "--variant", job.variant, "--seed", str(job.seed)]
    return [*nice, *script, *passed_on, *(["--fresh"] if is_changed(job) else [])]


@contextlib.contextmanager
def _child(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a process group of its own (Ctrl-C reaches only this process), and stop it at the end of the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | ONE_THREAD, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def work(jobs: Sequence[Job], workers: int, passed_on: Sequence[str], logs: Path) -> list[Job]:
    """
    Do the runs, ``workers`` at a time; one that fails does not stop the others.

    :param jobs: the runs
    :param workers: the number of runs at a time
    :param passed_on: further arguments of ``run.py``
    :param logs: the folder for the output of the runs
    :return: the runs that failed
    """
    waiting, failed, done = list(jobs), [], 0
    with contextlib.ExitStack() as stack:
        running: dict[Job, tuple[subprocess.Popen[bytes], Path, contextlib.ExitStack]] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                log = logs / job.task / f"{job.path.stem}.log"
                own = stack.enter_context(contextlib.ExitStack())
                running[job] = own.enter_context(_child(command_of(job, passed_on), log)), log, own
                print(f"{job}: started", flush=True)
            time.sleep(POLL_SECONDS)
            for job, (process, log, own) in list(running.items()):
                if process.poll() is None:
                    continue
                own.close()
                del running[job]
                done += 1
                left = duration(seconds_left([*running, *waiting], workers)) if running or waiting else "nothing"
                if process.returncode == 0:
                    print(f"[{done}/{len(jobs)}] {job}: {_outcome(job)}; left: {left}", flush=True)
                else:
                    failed.append(job)
                    print(f"[{done}/{len(jobs)}] {job}: FAILED ({process.returncode}); left: {left}\n{_tail(log)}", flush=True)
    return failed


def _outcome(job: Job) -> str:
    record = read_record(job.path)
    if record is None or not record["curve"]:
        return "no result"
    last = record["curve"][-1]
    reached = "" if record["threshold"] is None else f", threshold reached at {record['reached_at']}"
    return f"finished at {last['mean']:.1f}{reached}, {duration(last['wall_s'])}"


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all of each task")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds (default: the task's own)")
    parser.add_argument("--workers", type=int, default=1, help="number of runs at a time; each uses one thread")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--label", help="label of tuning runs (needed with --set)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as in run.py")
    parser.add_argument("--replace-changed", action="store_true", help="repeat runs that were made with other settings")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: give at least 1")
    if args.set and not args.label:
        parser.error("--set needs a --label")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    passed_on = ["--results", str(args.results), "--checkpoints", str(args.checkpoints)]
    label = clean_label(args.label) if args.label else None
    passed_on += ["--label", label] if label else []
    passed_on += ["--set", *args.set] if args.set else []
    overrides = parse_overrides(args.set)
    jobs = plan_jobs([TASKS[name] for name in args.tasks], args.variants, args.results, args.seeds, label, overrides)
    changed = [str(job.path) for job in jobs if is_changed(job)]
    if changed and not args.replace_changed:
        raise SystemExit("\n".join(["These were run with other settings; give --replace-changed to repeat them:", *changed]))
    due = [job for job in jobs if not is_finished(job)]
    print(
        f"{len(jobs) - len(due)} of {len(jobs)} runs are finished; left: {duration(seconds_left(due, args.workers))}",
        flush=True,
    )
    try:
        failed = work(due, args.workers, passed_on, args.checkpoints)
    except KeyboardInterrupt:
        raise SystemExit("Stopped; the same command continues from the last evaluations.") from None
    if failed:
        raise SystemExit(f"{len(failed)} failed: {', '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
