"""
What does a world model buy? MBPO on Pendulum-v1 next to SAC with the same number of updates, in a few minutes on two cores::

    python examples/demo.py            # or: make demo

Both are the same call with the same settings; for the second, ``world_model=None``. They run side by side, one process and one
thread each. The result is a table and a picture (``demo/pendulum.png``) of one seed. One seed proves nothing:
``examples/reproduce`` has the real comparison.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch as th
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import MBPO

ENV_ID = "Pendulum-v1"
EPISODES = 10
AGENTS = {"MBPO": "MBPO (with world model)", "SAC": "SAC, same number of updates"}


class Report(NamedTuple):
    """How far an agent is."""

    agent: str
    step: int
    mean_return: float | None
    """Mean of the evaluation episodes, where this step was one to evaluate at"""


class Watch(BaseCallback):
    """
    Evaluates now and then, and tells the parent process about every step.

    :param agent: name for the reports
    :param every: real steps between two evaluations
    :param reports: where they go
    :param stop: ends the training when it is set
    """

    def __init__(self, agent: str, every: int, reports: Any, stop: Any) -> None:
        super().__init__()
        self.agent, self.every, self.reports, self.stop = agent, every, reports, stop
        self.curve: list[tuple[int, float]] = []
        self.episodes = make_vec_env(ENV_ID, n_envs=EPISODES)

    def _on_step(self) -> bool:
        mean_return = None
        if self.num_timesteps % self.every == 0:
            self.episodes.seed(10_000)  # every evaluation starts from the same states
            result, _ = evaluate_policy(self.model, self.episodes, n_eval_episodes=EPISODES, deterministic=True)
            mean_return = float(result)  # type: ignore[arg-type]
            self.curve.append((self.num_timesteps, mean_return))
        self.reports.put(Report(self.agent, self.num_timesteps, mean_return))
        return not self.stop.is_set()


class Result(NamedTuple):
    """What an agent's process returns."""

    curve: list[tuple[int, float]]
    """Real steps and mean return"""
    seconds: dict[str, float]
    """Wall time in all and by phase"""


def train(agent: str, steps: int, every: int, seed: int, reports: Any, stop: Any) -> Result:
    """Train one agent, in a process of its own."""
    th.set_num_threads(1)
    settings = MBPO.preset(ENV_ID)
    if agent == "SAC":
        settings["world_model"] = None
    model = MBPO("MlpPolicy", ENV_ID, seed=seed, device="cpu", buffer_size=steps, **settings)
    watch = Watch(agent, every, reports, stop)
    start = time.perf_counter()
    model.learn(steps, callback=watch)
    return Result(watch.curve, {"all": time.perf_counter() - start, **model.phase_seconds})


def run(steps: int, every: int, seed: int, console: Console) -> dict[str, Result]:
    """Train both agents side by side under a progress bar."""
    warm_up = MBPO.preset(ENV_ID)["learning_starts"]
    columns = (
        TextColumn("{task.description:27}"),
        BarColumn(),
        TextColumn("{task.fields[step]:>5} steps"),
        TextColumn("{task.fields[note]:>17}"),
        TimeRemainingColumn(),
    )
    # A fresh interpreter per agent: forking one that already runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(len(AGENTS), mp_context=context) as pool,
        # An average over the last half minute: fitting the model comes in bursts.
        Progress(*columns, console=console, speed_estimate_period=30) as progress,
    ):
        reports, stop = manager.Queue(), manager.Event()
        futures: dict[str, Future[Result]] = {
            name: pool.submit(train, name, steps, every, seed, reports, stop) for name in AGENTS
        }
        # The random steps of the warm-up take no time; the bar and the time left are about those that follow.
        bars = {
            name: progress.add_task(title, total=max(1, steps - warm_up), step=0, note="") for name, title in AGENTS.items()
        }
        try:
            while not all(future.done() for future in futures.values()):
                _show_next(reports, progress, bars, warm_up)
                for future in futures.values():
                    if future.done():
                        future.result()  # raises what an agent raised
        except BaseException:
            stop.set()  # the other one need not be waited for
            raise
        for _ in range(reports.qsize()):
            _show_next(reports, progress, bars, warm_up)
        return {name: future.result() for name, future in futures.items()}


def _show_next(reports: Any, progress: Progress, bars: dict[str, TaskID], warm_up: int) -> None:
    try:
        report: Report = reports.get(timeout=0.2)
    except Empty:
        return
    note: dict[str, Any] = {}
    if report.mean_return is not None:
        note["note"] = f"mean return {report.mean_return:.0f}"
    progress.update(bars[report.agent], completed=max(0, report.step - warm_up), step=report.step, **note)
    if note and not progress.console.is_terminal:
        # Bars need a terminal; in a file or a CI log, a line per evaluation tells that it is alive.
        progress.console.print(f"{AGENTS[report.agent]}: {report.step} steps, {note['note']}")


def show_table(results: dict[str, Result], console: Console) -> None:
    """Both curves side by side."""
    table = Table(title=f"{ENV_ID}: mean return of {EPISODES} episodes")
    table.add_column("real steps", justify="right")
    for title in AGENTS.values():
        table.add_column(title, justify="right")
    for points in zip(*(result.curve for result in results.values()), strict=True):
        table.add_row(str(points[0][0]), *(f"{value:.0f}" for _, value in points))
    console.print(table)
    console.print("A random policy gets about -1200; what a good one loses, it loses while swinging up.")
    for name, result in results.items():
        parts = ", ".join(f"{phase} {value:.0f} s" for phase, value in result.seconds.items() if value >= 0.5)
        console.print(f"{name}: {parts}")


def draw(results: dict[str, Result], seed: int, path: Path) -> None:
    """The same as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, result in results.items():
        axes.plot(*zip(*result.curve, strict=True), marker="o", markersize=3, label=AGENTS[name])
    axes.axhline(-200, color="grey", linewidth=0.8, linestyle="--", label="-200: swings up and stays up")
    axes.set(
        xlabel="real environment steps", ylabel=f"mean return of {EPISODES} episodes", title=f"{ENV_ID}, one seed ({seed})"
    )
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="MBPO on Pendulum-v1 next to SAC with the same number of updates.")
    parser.add_argument("--steps", type=int, default=1_000, help="real environment steps (default: %(default)s)")
    parser.add_argument("--every", type=int, default=100, help="real steps between two evaluations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo/pendulum.png"), help="the picture (default: %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.every <= args.steps:
        parser.error("--every must be at least 1 and at most --steps")
    # The agents' processes inherit this before they import torch.
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    console.print(
        f"Training MBPO and SAC on {ENV_ID} for {args.steps} real steps each, side by side. This takes a few minutes."
    )
    try:
        results = run(args.steps, args.every, args.seed, console)
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    show_table(results, console)
    draw(results, args.seed, args.output)
    console.print(f"The curves are in {args.output.resolve()}")
    console.print(
        "This is one seed, and other seeds differ. The comparison over seeds and tasks, with its results: examples/reproduce"
    )


if __name__ == "__main__":
    main()
