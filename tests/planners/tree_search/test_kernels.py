"""Selection and backup against their equations, worked out by numpy on one node."""

import math

import numpy as np
import pytest

from sb3_mbrl.planners.tree_search import kernels
from sb3_mbrl.planners.tree_search.kernels import Rule
from sb3_mbrl.planners.tree_search.tree import new_arrays

PRIOR, VISITS, Q = np.array([0.5, 0.2, 0.3]), np.array([3, 0, 1]), np.array([0.2, 0.0, 0.6])
RAW = 0.1
VALUE = (RAW + (VISITS * Q).sum()) / 5


def node():
    tree = new_arrays(rows=1, simulations=9, edges=3)
    tree.prior[0, 0], tree.visits[0, 0], tree.q[0, 0] = PRIOR, VISITS, Q
    tree.total[0, 0], tree.value[0, 0], tree.raw_value[0, 0] = 5, VALUE, RAW
    tree.bounds[0] = [-1.0, 1.0]
    return tree


def rule(kind=kernels.GUMBEL, q_norm=kernels.SIBLINGS, fpu=kernels.LOWEST):
    return Rule(kind, q_norm, 1e-8, c_visit=50.0, c_scale=0.1, fpu=fpu, pb_c_init=1.25, pb_c_base=19652.0)


def mixed():
    visited = VISITS > 0
    return (RAW + 4 * (PRIOR * Q)[visited].sum() / PRIOR[visited].sum()) / 5


def test_the_mixed_value():
    assert kernels.mixed_value(node(), 0, 0) == pytest.approx(mixed())
    unvisited = node()
    unvisited.visits[:] = 0
    assert kernels.mixed_value(unvisited, 0, 0) == RAW


@pytest.mark.parametrize(
    ("q_norm", "normalise"),
    [
        (kernels.SIBLINGS, lambda q: (q - q.min()) / (q.max() - q.min())),
        (kernels.WHOLE_TREE, lambda q: (q + 1) / 2),
        (kernels.AS_THEY_ARE, lambda q: q),
    ],
)
def test_the_logits_of_q_values(q_norm, normalise):
    tree, out = node(), np.empty(3)
    kernels.complete(tree, 0, 0, out)
    completed = np.array([Q[0], mixed(), Q[2]])
    assert out == pytest.approx(completed)
    kernels.scale(tree, 0, 0, rule(q_norm=q_norm), out)
    assert out == pytest.approx((50 + 3) * 0.1 * normalise(completed))
    weights = PRIOR * np.exp(out)
    best = (weights / weights.sum() - VISITS / 5).argmax()
    assert kernels.choose_below(tree, 0, 0, rule(q_norm=q_norm), out) == best


def test_equal_values_are_no_preference():
    tree, out = node(), np.full(3, 0.7)
    kernels.scale(tree, 0, 0, rule(), out)
    assert out.tolist() == [0.0, 0.0, 0.0]


def test_at_the_root_only_edges_of_the_considered_visits_compete():
    score, out = np.array([9.0, -np.inf, 0.0]), np.empty(3)
    chosen = [kernels.choose_at_root(node(), 0, 0, rule(), score, considered, out) for considered in (3, 1)]
    assert chosen == [0, 2]


@pytest.mark.parametrize("fpu", [kernels.LOWEST, kernels.PARENT])
@pytest.mark.parametrize("q_norm", [kernels.SIBLINGS, kernels.WHOLE_TREE])
def test_puct(q_norm, fpu):
    low, high = (min(VALUE, 0.2), 0.6) if q_norm == kernels.SIBLINGS else (-1.0, 1.0)
    value = np.where(VISITS > 0, (Q - low) / (high - low), (VALUE - low) / (high - low) if fpu == kernels.PARENT else 0.0)
    weight = 1.25 + math.log((5 + 19652 + 1) / 19652)
    scores = value + weight * PRIOR * math.sqrt(5) / (1 + VISITS)
    assert kernels.choose_by_puct(node(), 0, 0, rule(kernels.PUCT, q_norm, fpu)) == scores.argmax()


def test_outcomes_follow_their_probabilities():
    tree, visits = node(), np.zeros(3, int)
    tree.visits[0, 0] = 0
    for _ in range(100):
        outcome = kernels.choose_outcome(tree, 0, 0)
        tree.visits[0, 0, outcome] += 1
        visits[outcome] += 1
    assert visits.tolist() == pytest.approx([50, 20, 30], abs=1)


def test_a_return_is_discounted_with_the_sign_of_each_edge():
    """Two plies below the root, the other player moves in between: ``G = 1 - 0.9 (2 - 0.9 * 5)``."""
    tree = new_arrays(rows=1, simulations=2, edges=2)
    logits = np.zeros(2, np.float32)
    for number, (parent, value, reward, discount) in enumerate(
        [(-1, 0.5, 0.0, 1.0), (0, 3.0, 1.0, -0.9), (1, 5.0, 2.0, -0.9)]
    ):
        assert kernels.expand(tree, 0, number, parent, 1, logits, value, reward, discount, False)
    kernels.backup(tree, 0, 2, 5.0)
    middle = 2 - 0.9 * 5
    assert tree.q[0, 1, 1] == pytest.approx(middle)
    assert tree.value[0, 1] == pytest.approx((3 + middle) / 2)
    assert tree.q[0, 0, 1] == pytest.approx(1 - 0.9 * (3 + middle) / 2)
    assert tree.value[0, 0] == pytest.approx((0.5 + 1 - 0.9 * middle) / 2)
    assert tree.visits[0, :2, 1].tolist() == [1, 1]
    assert tree.bounds[0].tolist() == pytest.approx([middle, 1 - 0.9 * (3 + middle) / 2])
