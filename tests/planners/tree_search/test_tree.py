"""The arrays of trees, and the states of their nodes."""

import numpy as np
import torch as th

from sb3_mbrl.planners.tree_search.tree import States, Tree, new_arrays


def test_the_principal_line_follows_visits_and_then_values():
    tree = Tree(*new_arrays(rows=2, simulations=3, edges=2))
    tree.visits[1, 0], tree.q[1, 0], tree.children[1, 0] = [2, 2], [0.1, 0.4], [1, 2]
    tree.visits[1, 2], tree.q[1, 2], tree.children[1, 2] = [1, 0], [-1.0, 0.0], [3, -1]
    assert tree.path(1) == [1, 0]
    assert tree.path(0) == []


def test_states_are_gathered_by_place():
    states = States({"h": th.arange(3.0)[:, None], "z": (th.arange(3),)}, nodes=3)
    states.put(2, {"h": 10 + th.arange(3.0)[:, None], "z": (10 + th.arange(3),)})
    got = states.get(th.tensor([2 * 3 + 0, 0 * 3 + 1, 2 * 3 + 2]))
    assert got["h"].tolist() == [[10.0], [1.0], [12.0]]
    assert got["z"][0].tolist() == [10, 1, 12]


def test_a_search_without_states_stores_none():
    states = States(None, nodes=3)
    states.put(1, None)
    assert states.get(th.zeros(2, dtype=th.int64)) is None


def test_trees_begin_empty():
    arrays = new_arrays(rows=2, simulations=3, edges=4)
    assert arrays.children.shape == (2, 4, 4)
    assert (arrays.children == -1).all()
    assert not arrays.total.any()
    assert np.array_equal(arrays.bounds, [[np.inf, -np.inf]] * 2)
