"""How an agent says what it is doing: figures, wall time, and words in the progress bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback


class ReportingMixin(OffPolicyAlgorithm if TYPE_CHECKING else object):  # type: ignore[misc]
    """Reports to SB3's logger and progress bar."""

    phase_seconds: dict[str, float]
    """Wall time spent in each phase so far"""
    _progress_bar: ProgressBarCallback | None

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        result = super()._init_callback(callback, progress_bar)
        children = result.callbacks if isinstance(result, CallbackList) else [result]
        self._progress_bar = next((child for child in children if isinstance(child, ProgressBarCallback)), None)
        return result

    def _record(self, key: str, value: Any) -> None:
        """Log a figure, where there is a logger (SB3 makes it in ``learn``)."""
        if getattr(self, "_logger", None) is not None:
            self.logger.record(key, value)

    def _tell(self, what: str) -> None:
        """Say in the progress bar what is going on (the bar itself moves with real steps only)."""
        bar = getattr(self._progress_bar, "pbar", None)
        if bar is not None:
            bar.set_description(what)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase_seconds[name] += time.perf_counter() - start
            self._record(f"time/{name}_s", self.phase_seconds[name])
