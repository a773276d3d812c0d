"""``TabularPlanner``: each method by hand, one step of it; clocks and streams."""

import json

import numpy as np
import pytest

from sb3_mbrl.agent.objects import from_plain, to_plain
from sb3_mbrl.algorithms.dyna_q.planner import PLANNING, TabularPlanner
from tests.helpers.tables import GAMMA, chain, counted

VALUES = [[GAMMA**2, GAMMA**3], [GAMMA, GAMMA**2], [1.0, GAMMA], [0.0, 0.0]]
"""The optimal values of the chain"""


def plan(planner, table, tables, n, *, alpha=1.0, kappa=0.0, theta=1e-9):
    planner.plan(table, tables, n, alpha, GAMMA, kappa, theta)


@pytest.mark.parametrize("planning", PLANNING)
def test_every_method_finds_the_values_of_the_chain(planning):
    planner, table, tables = TabularPlanner(8, planning, 0), np.zeros((4, 2)), chain()
    if planning == "prioritized_sweeping":
        for state, action in ((0, 0), (1, 0), (2, 0)):
            planner.queue_errors(table, tables, state, action, GAMMA, 1e-9)
    plan(planner, table, tables, 2_000)
    np.testing.assert_allclose(table[:3], VALUES[:3], atol=1e-6)
    assert planner.n_backups > 0


def test_updates_are_counted_as_the_methods_make_them():
    """Dyna-Q makes as many as it is asked for; sweeping stops when nothing is queued."""
    table, tables = np.zeros((4, 2)), chain()
    dyna = TabularPlanner(8, "dyna_q", 0)
    plan(dyna, table, tables, 10)
    plan(dyna, table, tables, 5)
    assert dyna.n_backups == 15
    sweeping = TabularPlanner(8, "prioritized_sweeping", 0)
    plan(sweeping, np.zeros((4, 2)), tables, 100)
    assert sweeping.n_backups == 0, "nothing was queued"


def test_one_error_is_queued_by_its_size():
    """Pair (2, 0) earns 1 and its value is 0; the pairs that lead to state 2 have no error yet."""
    planner = TabularPlanner(8, "prioritized_sweeping", 0)
    planner.queue_errors(np.zeros((4, 2)), chain(), 2, 0, GAMMA, 0.5)
    assert planner.queue.size[0] == 1
    assert planner.queue.priority[planner.queue.heap[0]] == pytest.approx(1.0)
    quiet = TabularPlanner(8, "prioritized_sweeping", 0)
    quiet.queue_errors(np.zeros((4, 2)), chain(), 2, 0, GAMMA, 1.5)
    assert quiet.queue.size[0] == 0, "errors below theta are not queued"


def test_other_methods_have_no_queue():
    planner = TabularPlanner(8, "dyna_q", 0)
    assert planner.queue is None
    planner.queue_errors(np.zeros((4, 2)), chain(), 2, 0, GAMMA, 1e-9)


def test_the_bonus_of_dyna_q_plus_grows_with_the_clock():
    """A pair last tried at time 1, planned at time 10: kappa times the square root of 9."""
    planner, table = TabularPlanner(4, "dyna_q_plus", 0), np.zeros((2, 2))
    planner.clock = 10
    tables = counted([(0, 0, 0.0, 1, 1), (0, 1, 0.0, 1, 1)], states=2)
    tables.last[0] = 1
    plan(planner, table, tables, 50, kappa=0.1)
    np.testing.assert_allclose(table[0], [0.1 * 9**0.5] * 2)


def test_the_same_seed_plans_the_same():
    def run(seed, restart=None):
        planner, table = TabularPlanner(8, "dyna_q", seed), np.zeros((4, 2))
        if restart is not None:
            planner.restart(restart)
        plan(planner, table, chain(), 3, alpha=0.5)
        return table

    results = {seed: run(seed) for seed in range(10)}
    np.testing.assert_array_equal(results[3], run(3))
    np.testing.assert_array_equal(results[4], run(0, restart=4))
    assert len({result.tobytes() for result in results.values()}) > 1


@pytest.mark.parametrize("planning", PLANNING)
def test_a_saved_planner_continues_where_it_was(planning):
    """Through JSON, as in a checkpoint: random stream, clock, counter and queue."""
    tables = chain()
    planner, table = TabularPlanner(8, planning, 1), np.zeros((4, 2))
    planner.clock = 7
    planner.queue_errors(table, tables, 2, 0, GAMMA, 1e-9)
    plan(planner, table, tables, 2, alpha=0.5)
    state = json.loads(json.dumps(to_plain(planner.state_dict())))
    other, copy = TabularPlanner(8, planning, 99), table.copy()
    other.load_state_dict(from_plain(state))
    for one, values in ((planner, table), (other, copy)):
        plan(one, values, tables, 2, alpha=0.5)
    np.testing.assert_array_equal(copy, table)
    assert (other.clock, other.n_backups) == (7, planner.n_backups)
