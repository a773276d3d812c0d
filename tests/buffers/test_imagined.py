"""The store of imagined rows."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.agent.objects import from_plain, to_plain
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


def weighted(first: int, weights: list[float]):
    return rollout(first, len(weights))._replace(weight=th.tensor([weights]))


def frequencies(buffer: ImaginedBuffer) -> dict[int, float]:
    drawn = buffer.draw(20_000, th.Generator().manual_seed(0))["reward"]
    return {int(value): float((drawn == value).float().mean()) for value in drawn.unique()}


def test_rows_are_drawn_in_proportion_to_their_weights_wherever_they_lie_in_the_ring():
    buffer = ImaginedBuffer(5)
    buffer.extend(weighted(0, [9.0, 9.0, 9.0]), 0)
    buffer.extend(weighted(3, [1.0, 2.0, 3.0, 4.0]), 1)  # overwrites the oldest two, across the end of the ring
    expected = {2: 9 / 19, 3: 1 / 19, 4: 2 / 19, 5: 3 / 19, 6: 4 / 19}
    assert frequencies(buffer) == pytest.approx(expected, abs=0.015)
    buffer.resize(2)
    assert frequencies(buffer) == pytest.approx({5: 3 / 7, 6: 4 / 7}, abs=0.015)


def test_rows_without_a_weight_that_can_be_drawn_are_not_stored():
    buffer = ImaginedBuffer(10)
    assert buffer.extend(weighted(0, [0.0, 2.0, -1.0, float("nan"), float("inf")]), 0) == 1
    assert stored(buffer) == [1]


def test_a_saved_buffer_draws_the_same_rows():
    buffer = ImaginedBuffer(4)
    buffer.extend(weighted(0, [1.0, 2.0, 3.0, 4.0, 5.0]), 3)
    again = ImaginedBuffer.from_state(from_plain(to_plain(buffer.to_state())))
    first, second = (one.draw(50, th.Generator().manual_seed(1)) for one in (buffer, again))
    assert all(th.equal(first[name], second[name]) for name in ("obs", "action", "reward", "terminated"))
    again.forget_before(4)
    assert len(again) == 0


def test_an_empty_buffer_cannot_be_sampled():
    with pytest.raises(ValueError, match="empty"):
        ImaginedBuffer(4).draw(1)
