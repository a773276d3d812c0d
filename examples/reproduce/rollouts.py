"""
The picture of ``docs/rollouts.md``: how a model's error grows with the steps that it is rolled out, and what long, short and
branched rollouts make of it::

    python examples/reproduce/run_all.py pendulum short-pendulum long-pendulum      # the returns
    python examples/reproduce/rollouts.py                                            # the errors, and the picture

An ensemble with the settings of ``pendulum`` is fitted to the first 300, 1,000 and 3,000 steps of a SAC agent that learns, and
rolled out along real actions in episodes that came later.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each run, before torch is imported

import argparse
from statistics import median

import torch as th
from correction import RESULTS, Case, collect, open_loop_errors, part
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from records import RESULTS as CURVES
from records import Record, read_record, write_record
from run import machine, versions
from tasks import PENDULUM

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.ensemble import EnsembleModel

STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
ROWS = (300, 1_000, 3_000)
SEEDS = (0, 1, 2)
KINDS = {
    "pendulum": "branched: 10 steps from all states",
    "short-pendulum": "short: 10 steps from first states",
    "long-pendulum": "long: 200 steps from first states",
}


def measure(path: str = "open-loop.json") -> Record:
    """Measure what is missing in the record of errors."""
    record: Record = read_record(RESULTS / path) or {
        "env_id": "Pendulum-v1",
        "steps": list(STEPS),
        "settings": PENDULUM.settings["world_model_kwargs"],
        "versions": versions(),
        "machine": machine(),
        "errors": [],
    }
    done = {(entry["rows"], entry["seed"]) for entry in record["errors"]}
    case = Case("Pendulum-v1", max(ROWS), 2_000, PENDULUM.settings["world_model_kwargs"], FitBudget(max_batches=2_000))
    for seed in SEEDS:
        if all((rows, seed) in done for rows in ROWS):
            continue
        buffer = collect(case, seed)
        test = part(buffer, slice(case.rows, case.rows + case.held_out))
        for rows in ROWS:
            if (rows, seed) in done:
                continue
            th.manual_seed(seed)
            model = EnsembleModel(buffer.observation_space, buffer.action_space, device="cpu", **case.settings)
            train = ReplayData(part(buffer, slice(0, rows)))
            model.fit(train, case.budget, generator=th.Generator().manual_seed(seed))
            errors = open_loop_errors(model, test, STEPS)
            record["errors"].append({"rows": rows, "seed": seed, "errors": errors})
            print(rows, seed, errors, flush=True)
            write_record(RESULTS / path, record)
    return record


def returns(task: str) -> list[Record]:
    """Read MBPO's runs of a task, by seed."""
    records = [read_record(CURVES / task / f"mbpo-seed{seed}.json") for seed in SEEDS]
    return [record for record in records if record is not None]


def draw(record: Record) -> None:
    """Draw errors (left) and returns (right) as a PNG."""
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for rows, colour in zip(ROWS, ("#9ec5e8", "#5b9bd0", "#1f4e79"), strict=True):
        runs = [entry["errors"] for entry in record["errors"] if entry["rows"] == rows]
        left.plot(
            record["steps"], [median(column) for column in zip(*runs, strict=True)], color=colour, label=f"{rows:,} real steps"
        )
        left.fill_between(
            record["steps"],
            *([limit(column) for column in zip(*runs, strict=True)] for limit in (min, max)),
            color=colour,
            alpha=0.2,
        )
    left.axhline(1.0, color="#888888", linewidth=0.8)
    left.text(1, 1.05, "as good as the mean of all observations", color="#666666", fontsize=8, va="bottom")
    left.set(xscale="log", yscale="log", xlabel="model steps", ylabel="squared error (1: the variance)")
    left.legend(title="fitted to")
    for (task, label), colour in zip(KINDS.items(), ("#1f6fb4", "#2f8f4e", "#d9721f"), strict=True):
        for i, run in enumerate(returns(task)):
            steps, means = ([point[key] for point in run["curve"]] for key in ("step", "mean"))
            right.plot(steps, means, color=colour, linewidth=1.2, label=label if i == 0 else None)
    right.set(xlabel="real steps", ylabel="mean return", title="MBPO on Pendulum-v1, three seeds each")
    right.legend(loc="lower right", fontsize=8)
    figure.savefig(RESULTS / "rollouts.png")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    th.set_num_threads(1)
    draw(measure())


if __name__ == "__main__":
    main()
