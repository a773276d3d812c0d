"""Counts of outcomes against a dictionary, and draws from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.models.tabular.counts import draw, heaviest
from tests.helpers.tables import counted

BIT = st.integers(0, 1)


def outcomes(tables, state, action) -> dict:
    seen, k = {}, tables.head[state, action]
    while k >= 0:
        seen[int(tables.state[k]), int(tables.terminal[k])] = (float(tables.weight[k]), float(tables.reward[k]))
        k = tables.link[k]
    return seen


def test_outcomes_are_counted_with_their_mean_reward():
    tables = counted([(0, 1, 2.0, 3, 0), (0, 1, 4.0, 3, 0), (0, 1, 1.0, 2, 0), (0, 1, 9.0, 3, 1)])
    assert outcomes(tables, 0, 1) == {(3, 0): (2.0, 3.0), (2, 0): (1.0, 1.0), (3, 1): (1.0, 9.0)}
    assert tables.total[0, 1] == 4.0
    assert tables.visited[: tables.sizes[1]].tolist() == [0]
    assert tables.tried[0, : tables.n_tried[0]].tolist() == [1]
    assert tables.last[0, 1] == 4


@pytest.mark.parametrize(
    ("memory", "weights"), [(0.0, {(2, 0): (0.0, 1.0), (3, 0): (1.0, 6.0)}), (0.5, {(2, 0): (0.5, 1.0), (3, 0): (1.25, 5.2)})]
)
def test_a_model_that_forgets_follows_a_world_that_changes(memory, weights):
    """By hand, for 0.5: the weights of 3 go 1, 0.5, 1.25; its reward is 2 + (6 - 2) / 1.25 = 5.2."""
    tables = counted([(0, 0, 2.0, 3, 0), (0, 0, 1.0, 2, 0), (0, 0, 6.0, 3, 0)], memory=memory)
    seen = outcomes(tables, 0, 0)
    assert seen.keys() == weights.keys()
    for outcome, weight_and_reward in weights.items():
        assert seen[outcome] == pytest.approx(weight_and_reward)
    assert tables.total[0, 0] == pytest.approx(sum(weight for weight, _ in weights.values()))


ROWS = st.lists(st.tuples(st.integers(0, 3), BIT, st.floats(-5, 5), st.integers(0, 3), BIT), min_size=1)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.floats(0, 0.999))
def test_counts_against_a_dictionary(rows, uniform):
    tables = counted(rows)
    for state in range(4):
        for action in range(2):
            seen = [(following, terminal) for s, a, _, following, terminal in rows if (s, a) == (state, action)]
            assert {key: weight for key, (weight, _) in outcomes(tables, state, action).items()} == {
                key: float(seen.count(key)) for key in seen
            }
            if seen:
                k = draw(tables, state, action, uniform)
                assert (int(tables.state[k]), int(tables.terminal[k])) in seen
                k = heaviest(tables, state, action)
                assert seen.count((int(tables.state[k]), int(tables.terminal[k]))) == max(seen.count(one) for one in seen)
    leading = {(int(tables.source[k]), s) for s in range(4) for k in _back(tables, s)}
    assert leading == {(s * 2 + a, following) for s, a, _, following, _ in rows}


def _back(tables, state):
    k = tables.back_head[state]
    while k >= 0:
        yield k
        k = tables.back_link[k]


def test_draws_come_by_weight():
    tables = counted([(0, 0, 0.0, 1, 0)] * 3 + [(0, 0, 0.0, 2, 0)])
    following = [int(tables.state[draw(tables, 0, 0, u)]) for u in np.linspace(0, 0.999, 1_000)]
    assert following.count(1) == pytest.approx(750, abs=1)
