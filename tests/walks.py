"""
The files of ``sb3_mbrl`` in which a function runs on the four walks of docs/architecture.md: ``python -m tests.walks``.

Most of them are helpers (nested tensors, spaces, random streams) that a reader need not open to follow a walk; the page names
the others. A walk that gets longer here deserves a look.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import sb3_mbrl
from sb3_mbrl import PETS
from tests.helpers.agents import learned
from tests.helpers.dreamers import small

ROOT = Path(sb3_mbrl.__file__).parent


@contextmanager
def traced(files: dict[str, None]) -> Iterator[None]:
    """Add the files of ``sb3_mbrl`` in which a function is called, in the order of the first call."""

    def look(frame: FrameType, event: str, _argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            files.setdefault(path.relative_to(ROOT).as_posix())

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


def transition_to_gradient(files: dict[str, None]) -> None:
    """Store real steps in MBPO, and train with a fit and with imagination in between."""
    agent = learned(learning_starts=60)
    judge = agent.trainer.judge

    def judge_and_trust(*args: Any) -> dict[str, float]:
        metrics = judge(*args)
        agent.trainer.trusted = True  # a fit of two epochs would not be
        return metrics

    def watch(method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with traced(files):
                return method(*args, **kwargs)

        return watched

    agent.trainer.judge = judge_and_trust  # type: ignore[method-assign]
    for name in ("_store_transition", "train"):
        setattr(agent, name, watch(getattr(agent, name)))
    agent.learn(61)


def predict_to_plan(files: dict[str, None]) -> None:
    """Ask PETS for an action."""
    model, planner = {"members": 3, "elites": 2, "hidden": [16]}, {"horizon": 3, "population": 8, "iterations": 2}
    settings = {"fit_kwargs": {"max_batches": 5}, "world_model_kwargs": model, "planner_kwargs": planner}
    agent = PETS("MlpPolicy", "Pendulum-v1", learning_starts=60, device="cpu", seed=0, **settings).learn(61)
    with traced(files):
        agent.predict(np.zeros((1, 3), np.float32))


def update(files: dict[str, None]) -> None:
    """Make one update of DreamerV3."""
    agent = small().learn(60)
    with traced(files):
        agent.train(1, 4)


def save(files: dict[str, None], agent: Any) -> None:
    """Save an agent."""
    with tempfile.TemporaryDirectory() as folder, traced(files):
        agent.save(Path(folder) / "agent")


def load(files: dict[str, None], agent: Any) -> None:
    """Load an agent."""
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        with traced(files):
            type(agent).load(Path(folder) / "agent", device="cpu")


WALKS: dict[str, Callable[[dict[str, None]], Any]] = {
    "MBPO: a real transition becomes a policy gradient": transition_to_gradient,
    "PETS: predict becomes a plan": predict_to_plan,
    "DreamerV3: one update": update,
    "MBPO: save": lambda files: save(files, learned().learn(60)),
    "MBPO: load": lambda files: load(files, learned().learn(60)),
    "DreamerV3: save": lambda files: save(files, small().learn(60)),
    "DreamerV3: load": lambda files: load(files, small().learn(60)),
}


def main() -> None:
    """Print the files of every walk."""
    warnings.simplefilter("ignore")
    for name, walk in WALKS.items():
        files: dict[str, None] = {}
        walk(files)
        print(f"{name}: {len(files)} files\n  {', '.join(files)}")


if __name__ == "__main__":
    main()
