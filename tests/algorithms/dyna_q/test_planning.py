"""Planning in tables against closed forms."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.algorithms.dyna_q import planning
from tests.helpers.tables import GAMMA, chain, counted

CHAIN = np.array([[GAMMA**2, GAMMA**3], [GAMMA, GAMMA**2], [1.0, GAMMA], [0.0, 0.0]])


def test_value_iteration_gives_the_closed_form():
    q = np.zeros((4, 2))
    updates = planning.value_iteration(q, chain(), GAMMA, 1e-12, 1_000)
    assert q == pytest.approx(CHAIN, abs=1e-11)
    assert updates % 6 == 0


@pytest.mark.parametrize("slippery", [False, True])
def test_value_iteration_on_frozen_lake_against_a_linear_system(slippery):
    """The optimum solves V = max_a (R_a + gamma P_a V): policy iteration with exact solves finds it by another way."""
    truth = gym.make("FrozenLake-v1", is_slippery=slippery).unwrapped.P
    n, actions = 16, 4
    transition, reward = np.zeros((actions, n, n)), np.zeros((actions, n))
    rows = []
    for s in range(n):
        for a in range(actions):
            if all(terminal and following == s for _, following, _, terminal in truth[s][a]):
                continue  # a hole or the goal: nobody acts there
            for probability, following, r, terminal in truth[s][a]:
                rows += [(s, a, float(r), int(following), int(terminal))] * round(3 * probability)
                reward[a, s] += probability * r
                if not terminal:
                    transition[a, s, following] += probability
    policy = np.zeros(n, int)
    for _ in range(50):
        chosen = transition[policy, np.arange(n)]
        value = np.linalg.solve(np.eye(n) - GAMMA * chosen, reward[policy, np.arange(n)])
        policy = (reward + GAMMA * transition @ value).argmax(0)
    q = np.zeros((n, actions))
    planning.value_iteration(q, counted(rows, n, actions), GAMMA, 1e-13, 10_000)
    assert q.max(1) == pytest.approx(value, abs=1e-10)


def test_dyna_q_converges_to_the_same_values():
    q = np.zeros((4, 2))
    planning.dyna_q(q, chain(), np.random.default_rng(0).random((5_000, 3)), 0.5, GAMMA)
    assert q == pytest.approx(CHAIN, abs=1e-6)


def test_one_planning_update_by_hand():
    tables, q = counted([(2, 1, 0.5, 1, 0)]), np.zeros((4, 2))
    q[1] = 3.0, 2.0
    planning.dyna_q(q, tables, np.array([[0.0, 0.0, 0.0]]), 0.1, GAMMA)
    assert q[2, 1] == pytest.approx(0.1 * (0.5 + GAMMA * 3.0))


def test_the_bonus_of_dyna_q_plus_by_hand():
    """Tried at time 1, planned at time 10: kappa sqrt(9); the untried action stays, with kappa sqrt(10)."""
    tables, q = counted([(2, 1, 0.5, 1, 0)]), np.zeros((4, 2))
    q[1], q[2] = 3.0, 2.0
    planning.dyna_q_plus(q, tables, np.array([[0.0, 0.9, 0.0]]), 1.0, GAMMA, 0.1, 10)
    assert q[2, 1] == pytest.approx(0.5 + 0.3 + GAMMA * 3.0)
    planning.dyna_q_plus(q, tables, np.array([[0.0, 0.1, 0.0]]), 1.0, GAMMA, 0.1, 10)
    assert q[2, 0] == pytest.approx(0.1 * 10**0.5 + GAMMA * q[2, 1])


def test_prioritised_sweeping_works_backwards():
    """One reward at the end: three updates carry it to the start; the rest brings the staying actions up to date."""
    tables, q, queue = chain(), np.zeros((4, 2)), planning.new_queue(8)
    planning.prioritise(q, tables, queue, 2, 0, GAMMA, 1e-6)
    assert planning.prioritised_sweeping(q, tables, queue, 1, 1.0, GAMMA, 1e-6) == 1
    assert q[2, 0] == 1.0
    assert planning.prioritised_sweeping(q, tables, queue, 100, 1.0, GAMMA, 1e-6) == 5
    assert q == pytest.approx(CHAIN)
    assert queue.size[0] == 0


@settings(deadline=None, max_examples=80)
@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 9), st.floats(0.01, 10))), max_size=60))
def test_the_queue_against_a_dictionary(operations):
    """``None`` pops; a pair raises its priority."""
    queue, expected = planning.new_queue(10), {}
    for operation in operations:
        if operation is not None:
            pair, priority = operation
            planning.push(queue, pair, priority)
            expected[pair] = max(priority, expected.get(pair, 0.0))
        elif expected:
            largest = max(expected.values())
            assert expected.pop(int(planning.pop(queue))) == largest
        assert int(queue.size[0]) == len(expected)
        assert {int(pair) for pair in queue.heap[: queue.size[0]]} == set(expected)
        if expected:
            assert queue.priority[queue.heap[0]] == max(expected.values())
