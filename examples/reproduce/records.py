"""The record of a run, one JSON file: its place and name, reading and writing it, and the meaning of "reached"."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CHECKPOINTS = HERE / "checkpoints"


def run_name(variant: str, seed: int, label: str | None = None) -> str:
    """Make the name of the file without its suffix; tuning runs have a label, published ones have none."""
    return f"{variant}-seed{seed}" + (f"@{label}" if label else "")


def clean_label(text: str) -> str:
    """Make a label safe for a file name."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "", text)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old or the new one, never a part of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_record(path: Path, record: Record) -> None:
    """Write a record in one step, with one line per evaluation, so that versions can be compared."""
    parts = []
    for key, value in record.items():
        if key == "curve":
            body = ",\n".join("    " + json.dumps(point, allow_nan=False) for point in value)
            parts.append(f'  "curve": [\n{body}\n  ]')
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def read_record(path: Path) -> Record | None:
    """Read a record; ``None`` if there is none yet."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a result file ({error}); delete it to run again") from error


def reached_at(steps: Sequence[int], means: Sequence[float], threshold: float | None, in_a_row: int = 2) -> int | None:
    """
    Find the first evaluations in a row at or above the threshold.

    :param steps: the real environment steps of the evaluations, ascending
    :param means: the mean return of each evaluation
    :param threshold: the threshold; ``None`` if the task has none
    :param in_a_row: the number of evaluations in a row
    :return: the step of the last of them; ``None`` if there are not so many
    """
    if threshold is None:
        return None
    row = 0
    for step, mean in zip(steps, means, strict=True):
        row = row + 1 if mean >= threshold else 0
        if row == in_a_row:
            return step
    return None
