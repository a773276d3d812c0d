"""The store of imagined rows."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.buffers import ImaginedBuffer
from tests.buffers.filled import rollout


def stored(buffer: ImaginedBuffer) -> list[int]:
    return sorted({int(value) for value in buffer.draw(5000, th.Generator().manual_seed(0))["reward"]}) if len(buffer) else []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from(["add", "age", "resize"]), st.integers(1, 15)), max_size=12))
def test_it_holds_the_newest_rows_that_are_young_enough(capacity, actions):
    """Against the obvious model: a list of (value, birth)."""
    buffer, expected, counter = ImaginedBuffer(capacity), [], 0
    for clock, (action, number) in enumerate(actions, start=1):
        if action == "add":
            buffer.extend(rollout(counter, number), clock)
            expected = [*expected, *((value, clock) for value in range(counter, counter + number))]
            counter += number
        elif action == "age":
            buffer.forget_before(clock - number)
            expected = [row for row in expected if row[1] >= clock - number]
        else:
            buffer.resize(number)
            capacity = number
        expected = expected[-capacity:]
        assert len(buffer) == len(expected)
        assert stored(buffer) == [value for value, _ in expected]


def test_masked_rows_are_not_stored():
    buffer = ImaginedBuffer(10)
    valid = th.tensor([[True, False, True], [False, False, True]])
    assert buffer.extend(rollout(0, 3, horizon=2, valid=valid), 0) == 3
    assert stored(buffer) == [0, 2, 5]


def test_an_empty_buffer_cannot_be_sampled():
    with pytest.raises(ValueError, match="empty"):
        ImaginedBuffer(4).draw(1)
