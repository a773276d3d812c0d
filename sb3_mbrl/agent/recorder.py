"""Logging: scalars, wall time per phase, and the text of the progress bar."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger

from sb3_mbrl.agent.objects import AgentObject


class Recorder(AgentObject):
    """A front of SB3's logger and progress bar, either of which may be missing."""

    def __init__(self) -> None:
        self.logger: Logger | None = None
        self.progress_bar: ProgressBarCallback | None = None
        self.phase_seconds: dict[str, float] = {}
        """The wall time spent in each phase so far"""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "progress_bar": None, "logger": None if writes(self.logger) else self.logger}

    def watch(self, callback: BaseCallback) -> None:
        """Find the progress bar among the callbacks of ``learn``."""
        children = callback.callbacks if isinstance(callback, CallbackList) else [callback]
        self.progress_bar = next((child for child in children if isinstance(child, ProgressBarCallback)), None)

    def record(self, key: str, value: Any) -> None:
        """Log a scalar, where there is a logger (SB3 makes it in ``learn``)."""
        if self.logger is not None:
            self.logger.record(key, value)

    def record_all(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Log scalars by name, each as ``prefix/name``."""
        for name, value in values.items():
            self.record(f"{prefix}/{name}", value)

    def describe(self, activity: str) -> None:
        """Show the present activity in the progress bar (the bar itself moves with real steps only)."""
        bar = getattr(self.progress_bar, "pbar", None)
        if bar is not None:
            bar.set_description(activity)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to its phase, and log the sum as ``time/<name>_s``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.perf_counter() - start
            self.record(f"time/{name}_s", self.phase_seconds[name])

    def state_dict(self) -> dict[str, Any]:
        return {"phase_seconds": dict(self.phase_seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phase_seconds = dict(state["phase_seconds"])


def writes(logger: Logger | None) -> bool:
    """Tell whether a logger writes to a file or a terminal, neither of which can be pickled."""
    return logger is not None and bool(logger.output_formats)
