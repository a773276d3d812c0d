"""A tiny learning benchmark: shared by the tests of examples/reproduce."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "reproduce"))

import agents
import records
import report
import run
import run_all
import tasks

__all__ = ["TINY", "agents", "records", "report", "run", "run_all", "steps_of", "tasks", "tiny_run"]

TINY = tasks.Task(
    "tiny",
    "Pendulum-v1",
    total_steps=60,
    eval_every=20,
    eval_episodes=1,
    seeds=(0, 1),
    settings={
        "learning_starts": 20,
        "gradient_steps": 1,
        "batch_size": 16,
        "policy_kwargs": {"net_arch": [8]},
        "world_model_kwargs": {"members": 2, "elites": 2, "hidden": [8]},
        "imagination_kwargs": {"freq": 10, "starts_per_step": 2, "max_age": 100},
        "fit_freq": 20,
        "fit_kwargs": {"max_epochs": 2},
    },
    threshold=-1e9,
    env_kwargs={"g": 9.81, "max_episode_steps": 30},
)


def tiny_run(folder: Path, variant: str = "mbpo", seed: int = 0) -> run.Run:
    return run.make_run(TINY, variant, seed, results=folder / "results", checkpoints=folder / "checkpoints")


def steps_of(record: records.Record) -> list[int]:
    return [point["step"] for point in record["curve"]]
