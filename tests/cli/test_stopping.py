"""Signals that end a run."""

import os
import signal

import pytest

from sb3_mbrl.checkpoints.interruptions import STOPPING
from sb3_mbrl.cli.stopping import StopSignals


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_stops_and_later_ones_do_nothing(number):
    before = {one: signal.getsignal(one) for one in STOPPING}
    with StopSignals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        for other in STOPPING:
            os.kill(os.getpid(), other)
    assert {one: signal.getsignal(one) for one in STOPPING} == before


def test_no_signal_interrupts_the_save_at_the_end():
    with StopSignals() as signals:
        signals.ignore()
        for other in STOPPING:
            os.kill(os.getpid(), other)


def test_what_was_ignored_stays_ignored():
    """``nohup`` ignores a closed terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
