"""
Draw the results of ``boards.py``::

    python examples/reproduce/boards_report.py

writes ``results-of-boards/README.md``, with a table per game, and a plot of the points beside it.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from records import HERE, Record, read_record, write_text

RESULTS = HERE / "results-of-boards"
JUDGED = {
    "muzero-tictactoe": "all games of the whole tree: the agent's move against every reply, from both seats",
    "muzero-connect-four": "games from all openings of two plies against alpha-beta of depth 4, from both seats",
}


def published(folder: Path) -> list[Record]:
    """Read the records of a game, without tuning runs, by seed."""
    records = [read_record(path) for path in folder.glob("*.json") if "@" not in path.stem]
    return sorted((record for record in records if record), key=lambda record: record["seed"])


def section(name: str, records: Sequence[Record]) -> str:
    """Describe the runs of a game in a table: a row per seed, and the games lost at every evaluation."""
    first = records[0]
    steps = [point["step"] for point in max(records, key=lambda record: len(record["curve"]))["curve"]]
    shown = steps[:: max(1, len(steps) // 10)]
    shown = [*shown, *([steps[-1]] if steps[-1] not in shown else [])]
    lines = [
        f"## {name}",
        "",
        f"Judged by {JUDGED[name]}. Cells: games lost (points: a win counts 1, a draw 0.5).",
        "",
        f"| seed | {' | '.join(f'{step:,}' for step in shown)} | CPU minutes |",
        f"|---|{'---|' * len(shown)}---|",
    ]
    for record in records:
        points = {point["step"]: point for point in record["curve"]}
        cells = [f"{points[s]['losses']} ({points[s]['points']:.3f})" if s in points else "" for s in shown]
        last = record["curve"][-1]
        unfinished = "" if last["step"] >= record["total_steps"] else f" (up to {last['step']:,} steps)"
        lines.append(f"| {record['seed']} | {' | '.join(cells)} | {last['cpu_s'] / 60:.0f}{unfinished} |")
    settings = f"`{first['preset']}`, changed: `{first['settings']}`"
    where = f"{first['n_envs']} environments, one thread, {first['machine']['cpu']}. {settings}"
    return "\n".join([*lines, "", where, "", f"![{name}]({name}.png)", ""])


def draw(name: str, records: Sequence[Record], path: Path) -> None:
    """Draw the share of points against real steps as a PNG, a line per seed."""
    figure = Figure(figsize=(7.5, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for record in records:
        steps, points = ([point[key] for point in record["curve"]] for key in ("step", "points"))
        axes.plot(steps, points, linewidth=1.5, label=f"seed {record['seed']}")
    axes.set_title(name)
    axes.set_xlabel("real environment steps (moves)")
    axes.set_ylabel("share of points")
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, metadata={"Software": None})  # no date and no version: the same data give the same bytes


def write_report(results: Path) -> list[str]:
    """Draw every game that has records, and write ``README.md`` next to the plots; return their names."""
    games = {name: published(results / name) for name in JUDGED}
    games = {name: records for name, records in games.items() if records}
    for name, records in games.items():
        draw(name, records, results / f"{name}.png")
    head = "# Results on boards\n\nDrawn from the JSON files beside it by `python examples/reproduce/boards_report.py`.\n"
    write_text(results / "README.md", "\n".join([head, *(section(name, records) for name, records in games.items())]))
    return list(games)


if __name__ == "__main__":
    print("drawn:", ", ".join(write_report(RESULTS)) or "nothing")
