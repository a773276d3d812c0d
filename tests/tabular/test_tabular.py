"""Counting and planning against closed forms, and the compiled functions against the plain ones."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.algorithms.dyna_q import planning
from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.models.tabular import jit
from sb3_mbrl.models.tabular.counts import draw, heaviest, new_tables, record, with_room
from sb3_mbrl.models.tabular.model import TabularModel

GAMMA = 0.9
BIT = st.integers(0, 1)


def counted(rows, states=4, actions=2, memory=1.0):
    tables = new_tables(states, actions, outcomes=1)
    for now, (state, action, reward, following, terminal) in enumerate(rows, start=1):
        tables = with_room(tables)
        record(tables, state, action, reward, following, terminal, now, memory)
    return tables


def outcomes(tables, state, action) -> dict:
    found, k = {}, tables.head[state, action]
    while k >= 0:
        found[int(tables.state[k]), int(tables.terminal[k])] = (float(tables.weight[k]), float(tables.reward[k]))
        k = tables.link[k]
    return found


# -------------------------------------------------------------------------------------------------------------------- counting


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
    found = outcomes(tables, 0, 0)
    assert found.keys() == weights.keys()
    for outcome, figures in weights.items():
        assert found[outcome] == pytest.approx(figures)
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


# -------------------------------------------------------------------------------------------------------------------- planning


def chain():
    """0 -> 1 -> 2 -> over with a reward of 1 (action 0); action 1 stays, for nothing."""
    rows = [(0, 0, 0.0, 1, 0), (1, 0, 0.0, 2, 0), (2, 0, 1.0, 3, 1)] + [(s, 1, 0.0, s, 0) for s in range(3)]
    return counted(rows)


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


@pytest.mark.skipif(not jit.COMPILED, reason="numba is not installed")
def test_compiled_and_plain_are_the_same_to_the_last_bit():
    tables, uniforms = chain(), np.random.default_rng(0).random((500, 3))
    compiled, plain = np.zeros((4, 2)), np.zeros((4, 2))
    planning.dyna_q(compiled, tables, uniforms, 0.3, GAMMA)
    planning.dyna_q.py_func(plain, tables, uniforms, 0.3, GAMMA)
    assert np.array_equal(compiled, plain)
    assert compiled.any()


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


# ------------------------------------------------------------------------------------------------------------------- the model


def test_the_model_draws_decodes_and_keeps_its_counts():
    space, actions = spaces.Discrete(5, start=10), spaces.Discrete(2, start=1)
    model = TabularModel(space, actions, device="cpu")
    for following in (1, 1, 1, 2):
        model.record(0, 1, 2.0, following, following == 2)
    state = model.initial(th.full((2_000, 1), 10))
    prediction = model.step(state, th.full((2_000, 1), 2), generator=th.Generator().manual_seed(0))
    assert float(prediction.terminated.mean()) == pytest.approx(0.25, abs=0.04)
    assert set(model.decode(prediction.state).flatten().tolist()) == {11, 12}
    sure = model.step(state[:1], th.tensor([[2]]), deterministic=True)
    assert (int(sure.state), float(sure.reward), float(sure.terminated)) == (1, 2.0, 0.0)
    untried = model.step(state[:1], th.tensor([[1]]), deterministic=True)
    assert (int(untried.state), float(untried.reward), float(untried.terminated)) == (0, 0.0, 0.0)


def test_what_the_model_does_not_take():
    with pytest.raises(UnsupportedSpace, match="it takes Discrete observations, not Box"):
        TabularModel(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match="memory=2: give a number from 0"):
        TabularModel(spaces.Discrete(2), spaces.Discrete(2), memory=2)
