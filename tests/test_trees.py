import pickle
from collections import namedtuple

import pytest
import torch as th

from sb3_mbrl.trees import (
    Constant,
    batch_size,
    finite_rows,
    tree_cat,
    tree_index,
    tree_items,
    tree_map,
    tree_repeat,
    tree_where,
)

Pair = namedtuple("Pair", ["left", "right"])


def nested(rows: int) -> dict:
    numbers = th.arange(rows, dtype=th.float32)
    return {"a": numbers[:, None], "b": Pair(numbers, [numbers[:, None, None].repeat(1, 2, 3)]), "none": None}


def test_map_keeps_the_structure_and_named_tuples():
    doubled = tree_map(lambda leaf: 2 * leaf, nested(3))
    assert isinstance(doubled["b"], Pair)
    assert doubled["none"] is None
    assert doubled["b"].right[0][2, 1, 2] == 4.0


def test_leaves_are_named_as_they_are_reached():
    names = [name for name, _ in tree_items(nested(3))]
    assert names == ["state['a']", "state['b'].left", "state['b'].right[0]"]
    assert [name for name, _ in tree_items(th.zeros(2), "obs")] == ["obs"]
    with pytest.raises(TypeError, match="not float"):
        list(tree_items({"a": 1.0}))


def test_index_repeat_and_cat_act_on_every_leaf():
    state = nested(3)
    repeated = tree_repeat(state, 2)
    assert repeated["b"].left.tolist() == [0, 0, 1, 1, 2, 2]
    assert tree_index(state, th.tensor([2, 0]))["a"].tolist() == [[2.0], [0.0]]
    joined = tree_cat([tree_index(state, slice(0, 1)), tree_index(state, slice(1, 3))])
    assert th.equal(joined["b"].right[0], state["b"].right[0])


def test_where_chooses_row_by_row():
    state = nested(3)
    other = tree_map(lambda leaf: leaf + 10, state)
    chosen = tree_where(th.tensor([True, False, True]), state, other)
    assert chosen["b"].left.tolist() == [0.0, 11.0, 2.0]


def test_finite_rows_looks_at_every_leaf():
    state = nested(3)
    state["b"].right[0][1, 0, 2] = float("nan")
    state["a"][2] = float("inf")
    assert finite_rows(state).tolist() == [True, False, False]


def test_batch_size_needs_agreement():
    assert batch_size(nested(3)) == 3
    with pytest.raises(ValueError, match=r"same leading batch axis, got \{a: \(2,\), b: \(3,\)\}"):
        batch_size({"a": th.zeros(2), "b": th.zeros(3)})


def test_states_of_different_structure_are_refused():
    with pytest.raises(TypeError, match="different structure"):
        tree_map(lambda a, b: a, {"a": th.zeros(1)}, {"a": th.zeros(1), "b": th.zeros(1)})
    with pytest.raises(TypeError, match="not int"):
        tree_map(lambda a: a, {"a": 3})


def test_a_constant_is_copied_to_a_device_once():
    constant = Constant(th.arange(3))
    assert constant.on(th.device("cpu")) is constant.value
    elsewhere = constant.on(th.device("meta"))
    assert elsewhere.device.type == "meta"
    assert constant.on(th.device("meta")) is elsewhere
    # What is saved on one machine is loaded on another.
    again = pickle.loads(pickle.dumps(constant))
    assert again.on(th.device("cpu")).tolist() == [0, 1, 2]
    assert again.on(th.device("meta")) is not elsewhere
