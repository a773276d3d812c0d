"""
Compare MBPO with SAC at the same number of updates on Pendulum-v1, in a few minutes on two cores::

    python examples/demo.py            # or: make demo

Both are the same call with the same settings, except that SAC has ``world_model=None``. They run side by side, with one
process and one thread each. The result is a table and a plot (``demo/pendulum.png``) for one seed. One seed proves nothing;
the real comparison is in ``examples/reproduce``.
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
    """The progress of an agent."""

    agent: str
    step: int
    mean_return: float | None
    """The mean over the evaluation episodes; ``None`` if there was no evaluation at this step"""


class Watch(BaseCallback):
    """
    A callback that evaluates regularly and reports every step to the parent process.

    :param agent: the name of the agent in the reports
    :param every: the number of real steps between two evaluations
    :param reports: the queue for the reports
    :param stop: an event that ends the training
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
    """The result of an agent's process."""

    curve: list[tuple[int, float]]
    """The real steps and mean return of each evaluation"""
    seconds: dict[str, float]
    """The wall time, in total and by phase"""


def train(agent: str, steps: int, every: int, seed: int, reports: Any, stop: Any) -> Result:
    """Train one agent; runs in a separate process."""
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
    # A new interpreter per agent: forking a process that already runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(len(AGENTS), mp_context=context) as pool,
        # Average the speed over the last half minute, since fits of the model come in bursts.
        Progress(*columns, console=console, speed_estimate_period=30) as progress,
    ):
        reports, stop = manager.Queue(), manager.Event()
        futures: dict[str, Future[Result]] = {
            name: pool.submit(train, name, steps, every, seed, reports, stop) for name in AGENTS
        }
        # The random steps of the warm-up take hardly any time, so the bar and the time left only count the steps after it.
        bars = {
            name: progress.add_task(title, total=max(1, steps - warm_up), step=0, note="") for name, title in AGENTS.items()
        }
        try:
            while not all(future.done() for future in futures.values()):
                _show_next(reports, progress, bars, warm_up)
                for future in futures.values():
                    if future.done():
                        future.result()  # raises the agent's exception, if any
        except BaseException:
            stop.set()  # do not wait for the other agent
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
        # Bars need a terminal; in a file or a CI log, a line per evaluation shows the progress.
        progress.console.print(f"{AGENTS[report.agent]}: {report.step} steps, {note['note']}")


def show_table(results: dict[str, Result], console: Console) -> None:
    """Print both curves side by side."""
    table = Table(title=f"{ENV_ID}: mean return of {EPISODES} episodes")
    table.add_column("real steps", justify="right")
    for title in AGENTS.values():
        table.add_column(title, justify="right")
    for points in zip(*(result.curve for result in results.values()), strict=True):
        table.add_row(str(points[0][0]), *(f"{value:.0f}" for _, value in points))
    console.print(table)
    console.print("A random policy gets about -1200; a good one has negative rewards only while it swings up.")
    for name, result in results.items():
        parts = ", ".join(f"{phase} {value:.0f} s" for phase, value in result.seconds.items() if value >= 0.5)
        console.print(f"{name}: {parts}")


def draw(results: dict[str, Result], seed: int, path: Path) -> None:
    """Draw both curves."""
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
    parser.add_argument("--seed", type=int, default=0, help="seed of agent and environment (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo/pendulum.png"), help="file of the plot (default: %(default)s)"
    )
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
