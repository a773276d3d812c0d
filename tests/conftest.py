"""Shared by all tests."""

import signal

import pytest
import torch as th

# As in a terminal: whoever starts the tests in the background may have them ignore these signals, which children would too.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks are fastest on one thread, and results do not depend on how many cores there are."""
    th.set_num_threads(1)


@pytest.fixture
def generator() -> th.Generator:
    return th.Generator().manual_seed(0)
