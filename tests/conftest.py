"""Shared by all tests."""

import pytest
import torch as th


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks are fastest on one thread, and results do not depend on how many cores there are."""
    th.set_num_threads(1)


@pytest.fixture
def generator() -> th.Generator:
    return th.Generator().manual_seed(0)
