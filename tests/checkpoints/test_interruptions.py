"""Signals that arrive while a checkpoint is being saved."""

import os
import signal
import threading

import pytest

from sb3_mbrl.checkpoints.interruptions import STOPPING, uninterrupted


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_waits_and_is_delivered(number):
    arrived = []
    before = signal.signal(number, lambda *_: arrived.append(number))
    try:
        with uninterrupted():
            for _ in range(3):
                os.kill(os.getpid(), number)
            assert arrived == []
        assert arrived == [number]
        os.kill(os.getpid(), number)
        assert arrived == [number, number]
    finally:
        signal.signal(number, before)


def test_an_error_and_a_signal():
    def fail():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, OSError)


def test_other_threads_are_left_alone():
    done = []

    def work():
        with uninterrupted():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
