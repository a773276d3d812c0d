"""Ending a run by a signal: the first one stops training, and none interrupts the save that follows."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from sb3_mbrl.checkpoints.interruptions import STOPPING


class StopSignals:
    """
    A context in which the first signal that ends processes raises ``KeyboardInterrupt``, and later ones do nothing.

    A signal that was ignored before stays so: ``nohup`` ignores a closed terminal, and shells ignore Ctrl-C for what runs in
    the background.
    """

    def __init__(self) -> None:
        self._deaf = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in STOPPING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore signals from now on: the run is being saved."""
        self._deaf = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._deaf:
            return
        # At once, so that a second signal cannot interrupt whatever comes before the save.
        self._deaf = True
        raise KeyboardInterrupt
