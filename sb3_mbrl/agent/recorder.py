"""Logging: scalars, wall time per phase, and the activity that progress shows."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger

from sb3_mbrl.agent.estimate import Costs
from sb3_mbrl.agent.objects import AgentObject
from sb3_mbrl.agent.progress import ProgressLines, TrainingBar

SHOWN = ("fit", "imagine", "plan", "update")
"""The phases that progress shows"""

LONGEST_NAME = 33
"""The longest name, after its ``tag/``, that SB3's log shows in full: 36 characters with an indentation of three"""


class Recorder(AgentObject):
    """A front of SB3's logger and progress bar, either of which may be missing."""

    def __init__(self) -> None:
        self.logger: Logger | None = None
        self.progress: ProgressBarCallback | ProgressLines | None = None
        """Where the present activity is shown"""
        self.costs: Costs | None = None
        """The result of the trial before the first run, where there was one"""
        self.said: set[str] = set()
        """The lines that are said once"""
        self._shown = ""
        self._running: dict[str, float] = {}  # when each phase that is running began
        self.phase_seconds: dict[str, float] = {}
        """The wall time spent in each phase so far"""
        self._short: dict[str, str] = {}
        """The names in the log of the values recorded so far"""
        self._taken: set[tuple[str, str]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "progress": None, "logger": None if writes(self.logger) else self.logger}

    def watch(self, callback: BaseCallback) -> None:
        """Find the one that shows progress among the callbacks of ``learn``."""
        self.progress = next((one for one in leaves(callback) if isinstance(one, (ProgressBarCallback, ProgressLines))), None)

    def seconds(self, name: str) -> tuple[float, float]:
        """Return the seconds of a phase so far, and those of it that is running now."""
        running = time.perf_counter() - self._running[name] if name in self._running else 0.0
        return self.phase_seconds.get(name, 0.0), running

    def record(self, key: str, value: Any) -> None:
        """Log a scalar, where there is a logger (SB3 makes it in ``learn``)."""
        if self.logger is not None:
            if key not in self._short:
                self._short[key] = self._unique(key)
            self.logger.record(self._short[key], value)

    def _unique(self, key: str) -> str:
        """
        Shorten a name that is longer than a line of SB3's log, which would cut it off, and end training where two names are
        then the same: ``model/obs_temperature_of_the_north_wing_loss`` is ``model/obs_temperature_~_north_wing_loss``.
        """
        tag, slash, name = key.partition("/") if "/" in key else ("", "", key)
        short, number, half = name, 1, LONGEST_NAME // 2
        while len(short) > LONGEST_NAME or (tag, short) in self._taken:
            middle = "~" if number == 1 else f"~{number}~"
            short, number = name[: half - len(middle) + 1] + middle + name[-half:], number + 1
        self._taken.add((tag, short))
        return f"{tag}{slash}{short}"

    def record_all(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Log scalars by name, each as ``prefix/name``."""
        for name, value in values.items():
            self.record(f"{prefix}/{name}", value)

    def say(self, text: str) -> None:
        """Write a sentence to the log, where there is one that shows text (``verbose=1``, or a logger with a file)."""
        if self.logger is not None:
            self.logger.info(text)

    def describe(self, activity: str) -> None:
        """Show the present activity (a bar itself moves with real steps only)."""
        if isinstance(self.progress, (TrainingBar, ProgressLines)):
            self.progress.describe(activity)
        elif (bar := getattr(self.progress, "pbar", None)) is not None:  # SB3's own
            bar.set_description(activity)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to its phase, and log the sum as ``time/<name>_s``."""
        start = self._running[name] = time.perf_counter()
        if self.progress is not None and name in SHOWN and name != self._shown:
            self._shown = name
            self.describe(name)
        try:
            yield
        finally:
            self._running.pop(name, None)
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.perf_counter() - start
            self.record(f"time/{name}_s", self.phase_seconds[name])

    def state_dict(self) -> dict[str, Any]:
        return {"phase_seconds": dict(self.phase_seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.phase_seconds = {name: float(seconds) for name, seconds in state["phase_seconds"].items()}


def leaves(callback: BaseCallback) -> Iterator[BaseCallback]:
    """Yield a callback, or those in a list of callbacks."""
    if isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from leaves(child)
    else:
        yield callback


def writes(logger: Logger | None) -> bool:
    """Tell whether a logger writes to a file or a terminal, neither of which can be pickled."""
    return logger is not None and bool(logger.output_formats)
