"""Signals that end a process, put off until a save is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, what ends a process (job schedulers send it), a closed terminal, and Slurm's usual warning"""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Put off the signals of :data:`STOPPING` until the block has been left; each is delivered then, to its handler of before.

    Python delivers signals to the main thread: elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: dict[int, None] = {}

    def note(number: int, frame: FrameType | None) -> None:
        arrived[number] = None

    before = {}
    try:
        for number in STOPPING:
            if signal.getsignal(number) is not None:  # None: not a handler of Python's
                before[number] = signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)
