"""
Write the results of ``correction.py`` as tables::

    python examples/reproduce/correction_report.py

writes ``results-of-models/README.md``: the error after so many steps, a table per environment, with every seed.
"""

from statistics import median

from correction import RESULTS
from records import Record, read_record, write_text

NAMES = {
    "plain": "single steps",
    "multi-step": "`multi_step=5`",
    "demonstrator": "`multi_step=5`, `multi_step_gradient=False`",
    "input-noise": "`input_noise=0.03`",
}


def table(record: Record) -> str:
    """Describe the fits on one environment: the median over seeds after each number of steps, and all seeds after the most."""
    steps, errors = record["steps"], record["errors"]
    seeds = sorted({entry["seed"] for entry in errors})
    lines = [
        f"## {record['env_id']}",
        "",
        f"{record['rows']:,} rows, at most {record['max_batches']:,} batches, `{record['settings']}`; "
        f"{record['held_out']:,} held-out rows; {record['machine']['cpu']}, one thread. Medians over the seeds "
        f"{', '.join(map(str, seeds))}.",
        "",
        f"| trained on | {' | '.join(f'{step} steps' for step in steps)} | each seed, {steps[-1]} steps | batches | CPU s |",
        f"|---|{'---|' * len(steps)}---|---|---|",
    ]
    for variant in record["variants"]:
        of_variant = [entry for entry in errors if entry["variant"] == variant]
        if not of_variant:
            continue
        medians = [median(entry["errors"][i] for entry in of_variant) for i in range(len(steps))]
        last = ", ".join(f"{entry['errors'][-1]:.3g}" for entry in of_variant)
        batches, cpu = (median(entry[key] for entry in of_variant) for key in ("batches", "cpu_s"))
        cells = " | ".join(f"{value:.3g}" for value in medians)
        lines.append(f"| {NAMES[variant]} | {cells} | {last} | {batches:,.0f} | {cpu:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    records = [record for path in sorted(RESULTS.glob("*.json")) if (record := read_record(path)) and "variants" in record]
    head = [
        "# Errors of models after many steps",
        "",
        "Written by `correction_report.py` from the JSON files beside it, which `correction.py` makes. The error is the mean",
        "squared difference between the mean prediction along real actions and the real observation, in units of the",
        "numbers' variances.",
        "",
    ]
    write_text(RESULTS / "README.md", "\n".join([*head, *map(table, records)]))


if __name__ == "__main__":
    main()
