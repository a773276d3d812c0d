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


def random_node(rng):
    """A node of four edges, of which some may be unvisited or have a prior of 0, and its parent tree's bounds."""
    tree = new_arrays(rows=1, simulations=9, edges=4)
    prior = rng.dirichlet(np.ones(4)) * (rng.random(4) < 0.8)
    prior[rng.integers(4)] += 0.1
    visits = rng.integers(0, 5, 4) * (rng.random(4) < 0.7) * (prior > 0)
    tree.prior[0, 0], tree.visits[0, 0], tree.q[0, 0] = prior / prior.sum(), visits, rng.normal(size=4) * (visits > 0)
    tree.total[0, 0], tree.raw_value[0, 0] = 1 + visits.sum(), rng.normal()
    tree.value[0, 0] = (tree.raw_value[0, 0] + (visits * tree.q[0, 0]).sum()) / tree.total[0, 0]
    if visits.any():
        tree.bounds[0] = tree.q[0, 0].min() - 1, tree.q[0, 0].max() + 1
    return tree, tree.prior[0, 0], visits, tree.q[0, 0], tree.value[0, 0], tree.raw_value[0, 0]


@pytest.mark.parametrize("fpu", [kernels.LOWEST, kernels.PARENT])
@pytest.mark.parametrize("q_norm", [kernels.SIBLINGS, kernels.WHOLE_TREE])
def test_puct_on_random_nodes(q_norm, fpu):
    """The plain node above has one best edge by far: a missing 1 in ``N`` went unnoticed there."""
    rng, settings = np.random.default_rng(0), rule(kernels.PUCT, q_norm, fpu)._replace(pb_c_base=5.0)
    for _ in range(400):
        tree, prior, visits, q, value, _ = random_node(rng)
        seen, total = np.append(q[visits > 0], value), 1 + visits.sum()
        low, high = (seen.min(), seen.max()) if q_norm == kernels.SIBLINGS else tree.bounds[0]
        if q_norm == kernels.WHOLE_TREE and not visits.any():
            low, high = 0.0, 1.0
        width = max(high - low, 1e-8)
        unvisited = np.clip((value - low) / width, 0, 1) if fpu == kernels.PARENT else 0.0
        weight = 1.25 + math.log((total + 5 + 1) / 5)
        scores = np.where(visits > 0, (q - low) / width, unvisited) + weight * prior * math.sqrt(total) / (1 + visits)
        assert kernels.choose_by_puct(tree, 0, 0, settings) == np.where(prior > 0, scores, -np.inf).argmax()


@pytest.mark.parametrize("q_norm", [kernels.SIBLINGS, kernels.WHOLE_TREE, kernels.AS_THEY_ARE])
def test_gumbel_selection_on_random_nodes(q_norm):
    """At the root and below, with scales at which values and priors both count."""
    rng, settings, out = np.random.default_rng(0), rule(q_norm=q_norm)._replace(c_visit=3.0, c_scale=0.3), np.empty(4)
    for _ in range(400):
        tree, prior, visits, q, _, raw = random_node(rng)
        seen, n = visits > 0, visits.sum()
        mix = (raw + n * (prior * q)[seen].sum() / prior[seen].sum()) / (1 + n) if n else raw
        completed = np.where(seen, q, mix)
        low, high = {
            kernels.SIBLINGS: (completed.min(), completed.max()),
            kernels.WHOLE_TREE: tuple(tree.bounds[0]) if n else (0.0, 1.0),
            kernels.AS_THEY_ARE: (0.0, 1.0),
        }[q_norm]
        sigma = (3 + visits.max()) * 0.3 * (completed - low) / max(high - low, 1e-8)
        improved = prior * np.exp(sigma - sigma.max())
        below = improved / improved.sum() - visits / (1 + n)
        assert kernels.choose_below(tree, 0, 0, settings, out) == np.where(prior > 0, below, -np.inf).argmax()
        score, considered = rng.normal(size=4), visits[rng.integers(4)]
        at_root = np.where(visits == considered, score + sigma, -np.inf).argmax()
        assert kernels.choose_at_root(tree, 0, 0, settings, score, considered, out) == at_root


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
