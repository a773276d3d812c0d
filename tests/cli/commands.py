"""Short commands, and what they leave."""

import csv
import textwrap

from sb3_mbrl.cli import main

SMALL = [
    *("--env", "Pendulum-v1", "--no-progress", "--eval-episodes", "1", "--device", "cpu"),
    *("--world-model-kwargs", "members=2", "elites=1", "hidden=[16]"),
    *("--imagination-kwargs", "starts_per_step=5", "freq=10", "max_age=50"),
]
QUICK = ["--set", "gradient_steps=1", "learning_starts=50", "fit_freq=50", "buffer_size=500"]


def module(folder, name, source):
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return name


def train(*args):
    return main(["train", *SMALL, *QUICK, *args])


def rows(folder, name="progress.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))
