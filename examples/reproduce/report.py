"""Curves and tables from the result files: ``python examples/reproduce/report.py``.

Everything comes from the JSON files, every seed is shown, and unfinished runs are marked. ``--tuning`` prints one line per
file, including labelled ones, and writes nothing.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from records import RESULTS, Record, read_record, write_text
from run_all import duration
from tasks import ALONE, BASES, MODEL_OFF, MODELS_OWN, TASKS, TRUE_MODEL, VARIANTS

COLOURS = {
    **{variant: "#1f6fb4" for variant in (*BASES, *ALONE)},
    MODEL_OFF: "#d9721f",
    TRUE_MODEL: "#2f8f4e",
    **{variant: "#7f7f7f" for variant in BASES.values()},
}
LAST = 3
"""The number of evaluations at the end of a run whose mean is its final value"""


def load_records(folder: Path, tuning: bool = False) -> list[Record]:
    """
    Load the records of one task, except those without any evaluation yet.

    :param folder: the folder of the task
    :param tuning: whether to include labelled records
    :return: the records, sorted by variant, then label, then seed
    """
    records = [record for record in map(read_record, sorted(folder.glob("*.json"))) if record is not None and record["curve"]]
    order = {variant: rank for rank, variant in enumerate(VARIANTS)}
    chosen = [record for record in records if tuning or record["label"] is None]
    return sorted(chosen, key=lambda record: (order[record["variant"]], record["label"] or "", record["seed"]))


# ---------------------------------------------------------------------------------------------------------------- metrics


def final_value(record: Record) -> float:
    """Compute the mean of the last three evaluations."""
    return statistics.fmean(point["mean"] for point in record["curve"][-LAST:])


def average_value(record: Record) -> float:
    """
    Compute the average return over the run: the area under the learning curve, divided by its length in steps.

    With trapezoids, the area is the sum of (step_b - step_a) * (mean_a + mean_b) / 2 over neighbouring evaluations a and b.
    """
    curve = record["curve"]
    length = curve[-1]["step"] - curve[0]["step"]
    if length == 0:
        return curve[0]["mean"]
    return sum((b["step"] - a["step"]) * (a["mean"] + b["mean"]) / 2 for a, b in pairwise(curve)) / length


def reached_step(record: Record) -> float:
    """Return the step at which the threshold was reached; infinity if it was not."""
    return math.inf if record["reached_at"] is None else record["reached_at"]


def reached_trial(record: Record) -> float:
    """Find the first training episode at or above the threshold, counted from 1; infinity if there is none."""
    return next((i for i, point in enumerate(record["curve"], 1) if point["mean"] >= record["threshold"]), math.inf)


def best_value(record: Record) -> float:
    """Compute the highest return of a training episode."""
    return max(point["mean"] for point in record["curve"])


def wall_seconds(record: Record) -> float:
    """Return the time of training, without evaluations."""
    return record["curve"][-1]["wall_s"]


def _step_text(step: float, total: int) -> str:
    return f"> {total:,}" if math.isinf(step) else f"{step:,.0f}"


Column = tuple[str, Callable[[Record], float], Callable[[float], str]]
"""A column of the table: its heading, its value for a record, and the text of that value"""


def _columns(record: Record) -> list[Column]:
    trials = record["eval_episodes"] == 0
    columns: list[Column] = [
        (f"last {LAST} {'episodes' if trials else 'evaluations'}", final_value, lambda value: f"{value:,.1f}"),
        ("average over the run", average_value, lambda value: f"{value:,.1f}"),
        ("training time", wall_seconds, duration),
    ]
    if record["threshold"] is not None:
        total = record["total_steps"]
        columns.insert(0, (f">= {record['threshold']:g} at step", reached_step, lambda step: _step_text(step, total)))
    if trials:
        columns.insert(0, ("best episode", best_value, lambda value: f"{value:,.1f}"))
        if record["threshold"] is not None:
            columns.insert(0, ("in episode", reached_trial, lambda trial: "-" if math.isinf(trial) else f"{trial:g}"))
    return columns


# ------------------------------------------------------------------------------------------------------------------ table


def task_section(name: str, records: Sequence[Record]) -> str:
    """
    Write the section of one task in Markdown: conditions, plot, a row per seed, and the medians.

    :param name: the name of the task
    :param records: the task's published records, not empty
    """
    first = records[0]
    lines = [f"## {name}", "", _conditions(first), "", f"![Learning curves of {name}]({name}.png)", ""]
    lines += [line for warning in _inconsistencies(records) for line in (f"**{warning}**", "")]
    columns = _columns(first)
    lines.append(_row("variant", "seed", *(heading for heading, _, _ in columns), ""))
    lines.append("|" + "---|" * (len(columns) + 3))
    for variant in VARIANTS:
        own = [record for record in records if record["variant"] == variant]
        if own:
            lines += _variant_rows(variant, own, _missing_seeds(name, own), columns)
    lines += ["", *_provenance(records)]
    return "\n".join(lines)


def _variant_rows(variant: str, own: Sequence[Record], missing: Sequence[int], columns: Sequence[Column]) -> list[str]:
    """Write a row per seed, and the median of the finished runs."""
    rows = {seed: _row(variant, str(seed), *["" for _ in columns], "not started") for seed in missing}
    for record in own:
        cells = [text(value(record)) for _, value, text in columns]
        rows[record["seed"]] = _row(variant, str(record["seed"]), *cells, _remark(record))
    lines = [rows[seed] for seed in sorted(rows)]
    finished = [record for record in own if record["finished"]]
    if not finished:
        return lines
    medians = [text(statistics.median(map(value, finished))) for _, value, text in columns]
    remarks = [] if len(finished) == len(rows) else [f"of {len(finished)} finished of {len(rows)}"]
    if own[0]["threshold"] is not None:
        within = own[0]["deadline"] or own[0]["total_steps"]
        remarks.append(f"{sum(reached_step(record) <= within for record in own)} of {len(rows)} reached within {within:,}")
    return [*lines, _row(f"**{variant}**", "**median**", *(f"**{median}**" for median in medians), "; ".join(remarks))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _conditions(record: Record) -> str:
    text = f"`{record['env_id']}`, {record['total_steps']:,} real steps; "
    if record["eval_episodes"] == 0:
        text += "the episodes of training."
    else:
        text += f"every {record['eval_every']:,} steps {record['eval_episodes']} episodes of the deterministic policy, always "
        text += "from the same start states."
    if record["threshold"] is None:
        return text
    within = f" (required within {record['deadline']:,} steps)" if record["deadline"] is not None else ""
    if record["eval_episodes"] == 0:
        return f"{text} Reached: one episode of at least {record['threshold']:g}{within}."
    return (
        f"{text} Reached: two evaluations in a row with a mean of at least {record['threshold']:g}{within}; the second counts."
    )


def _remark(record: Record) -> str:
    remarks = []
    if not record["finished"]:
        remarks.append(f"unfinished, at step {record['curve'][-1]['step']:,}")
    if len(record.get("sources", [])) > 1:
        remarks.append("the library changed on the way")
    if record["resumed_at"]:
        remarks.append("resumed at " + ", ".join(f"{step:,}" for step in record["resumed_at"]))
    return "; ".join(remarks)


def _missing_seeds(task: str, records: Sequence[Record]) -> list[int]:
    """List the task's fixed seeds that have no record yet."""
    seeds = TASKS[task].seeds if task in TASKS else ()
    return [seed for seed in seeds if seed not in {record["seed"] for record in records}]


TASK_KEYS = ("env_id", "env_kwargs", "total_steps", "eval_every", "eval_episodes", "threshold", "deadline")


def _inconsistencies(records: Sequence[Record]) -> list[str]:
    """Describe forbidden differences within a task (between files from before and after a change in ``tasks.py``)."""
    warnings = []
    if len({json.dumps([record[key] for key in TASK_KEYS]) for record in records}) > 1:
        warnings.append("The runs differ in their task (steps, evaluation, threshold); the heading is that of the first.")
    kinds: dict[str, set[str]] = {}
    shared: dict[str, set[str]] = {}
    for record in records:
        settings = {key: value for key, value in record["settings"].items() if key != "world_model"}
        # The model's own settings have no effect on the control.
        without = {key: value for key, value in settings.items() if key not in MODELS_OWN}
        own = without if record["variant"] == MODEL_OFF else settings
        kinds.setdefault(record["variant"], set()).add(json.dumps(own, sort_keys=True))
        shared.setdefault(record["variant"], set()).add(json.dumps(without, sort_keys=True))
    warnings += [f"The seeds of {variant} have different settings." for variant, own in kinds.items() if len(own) > 1]
    for variant in BASES.keys() & kinds.keys():
        if MODEL_OFF in kinds and shared[variant] != shared[MODEL_OFF]:
            warnings.append(f"The settings of {variant} and {MODEL_OFF} differ in more than the world model.")
    return warnings


def _provenance(records: Sequence[Record]) -> list[str]:
    """List settings, states of the library, versions and machines; where there are several, with the runs that used them."""
    lines = []
    for variant in VARIANTS:
        own = [record for record in records if record["variant"] == variant]
        kinds = list(dict.fromkeys(json.dumps(record["settings"]) for record in own))
        for kind in kinds:
            seeds = ", ".join(str(record["seed"]) for record in own if json.dumps(record["settings"]) == kind)
            lines.append(f"- `{variant}`{f' (seeds {seeds})' if len(kinds) > 1 else ''}: `{kind}`")
    sources: dict[str, list[str]] = {}
    for record in records:
        for source in record.get("sources", []):
            sources.setdefault(source, []).append(f"{record['variant']} {record['seed']}")
    if len(sources) == 1:
        lines.append(f"- state of the library (digest): `{next(iter(sources))}`")
    else:
        lines += [f"- state of the library (digest) `{source}`: {', '.join(runs)}" for source, runs in sources.items()]
    stacks = dict.fromkeys(
        (json.dumps(record["versions"]), json.dumps(record["machine"]), record["threads"]) for record in records
    )
    for versions, machine, threads in stacks:
        packages = ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())
        host = json.loads(machine)
        lines.append(f"- {packages}; {host['cpu']}, {host['cores']} cores, {threads} thread{'s' if threads > 1 else ''} a run")
    return lines


# ------------------------------------------------------------------------------------------------------------------- plot


def median_curve(records: Sequence[Record]) -> tuple[list[int], list[float]]:
    """Compute the median over seeds, at the steps that all of them have reached."""
    curves = [{point["step"]: point["mean"] for point in record["curve"]} for record in records]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, [statistics.median(curve[step] for curve in curves) for step in steps]


def draw(name: str, records: Sequence[Record], path: Path) -> None:
    """
    Draw learning curves as a PNG: a thin line per seed, a thick one for the median of each variant.

    :param name: the name of the task
    :param records: the task's published records, not empty
    :param path: the file of the plot
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first = records[0]
    for variant in VARIANTS:
        own = [record for record in records if record["variant"] == variant]
        if not own:
            continue
        for record in own:
            steps, means = ([point[key] for point in record["curve"]] for key in ("step", "mean"))
            axes.plot(steps, means, color=COLOURS[variant], linewidth=0.8, alpha=0.5)
        unfinished = sum(not record["finished"] for record in own)
        label = f"{variant}, {len(own)} seed{'s' if len(own) > 1 else ''}" + (
            f" ({unfinished} unfinished)" if unfinished else ""
        )
        axes.plot(*median_curve(own), color=COLOURS[variant], linewidth=2.6, label=label)
    if first["threshold"] is not None:
        axes.axhline(first["threshold"], color="black", linestyle="--", linewidth=1, label=f"threshold {first['threshold']:g}")
    if first["deadline"] is not None:
        axes.axvline(first["deadline"], color="black", linestyle=":", linewidth=1)
    axes.set_title(f"{name} ({first['env_id']}); thick: median over seeds")
    axes.set_xlabel("real environment steps")
    axes.set_ylabel(f"mean return of {first['eval_episodes']} evaluation episodes")
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small")
    # No date and no version in the file: the same data give the same bytes.
    figure.savefig(path, metadata={"Software": None})


# ------------------------------------------------------------------------------------------------------------ command line


def write_report(results: Path) -> list[str]:
    """
    Draw every task that has records, and write ``README.md`` next to the plots.

    :param results: the folder of the results
    :return: the names of the tasks
    """
    order = {name: rank for rank, name in enumerate(TASKS)}
    folders = sorted(
        (path for path in results.iterdir() if path.is_dir()), key=lambda path: (order.get(path.name, len(order)), path.name)
    )
    sections, names = [], []
    for folder in folders:
        records = load_records(folder)
        if records:
            draw(folder.name, records, results / f"{folder.name}.png")
            sections.append(task_section(folder.name, records))
            names.append(folder.name)
    head = (
        "# Results of the learning benchmarks\n\n"
        "Written by `examples/reproduce/report.py` from the JSON files in this folder; do not edit. `model-off` is the same "
        "call with `world_model=None`; `sac`, `dqn` and so on are the base classes at their defaults. Every seed is listed; a "
        "threshold that was not reached counts as infinitely late in the median.\n\n"
    )
    write_text(results / "README.md", head + "\n\n".join(sections) + "\n")
    return names


def tuning_lines(results: Path) -> list[str]:
    """Describe every file in one line, including labelled ones."""
    lines = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        for record in load_records(folder, tuning=True):
            cells = "  ".join(f"{heading}: {text(value(record))}" for heading, value, text in _columns(record))
            name = f"{folder.name} {record['variant']} seed {record['seed']} {record['label'] or '(published)'}"
            lines.append("  ".join(filter(None, (f"{name}:", cells, _remark(record)))))
    return lines


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tuning", action="store_true", help="print a line per file, including labelled ones; write nothing")
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        raise SystemExit(f"{args.results}: there are no results yet; run run_all.py first")
    if args.tuning:
        print("\n".join(tuning_lines(args.results)))
    else:
        print(f"{args.results / 'README.md'}: {', '.join(write_report(args.results)) or 'no results yet'}")


if __name__ == "__main__":
    main()
