"""The conversion to plain values and back."""

import json

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.agent.objects import from_plain, to_plain

leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner))


@given(values)
def test_json_values_come_back(value):
    assert from_plain(json.loads(json.dumps(to_plain(value)))) == value


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool", "complex64", "<U5"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3)])
def test_arrays_come_back(dtype, shape):
    value = np.asarray(np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    back = from_plain(json.loads(json.dumps(to_plain(value))))
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)
    back[...] = back  # writable


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float32, th.float64, th.uint8, th.int64, th.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_tensors_come_back(dtype, shape):
    value = (th.randn(shape, generator=th.Generator().manual_seed(0)) * 9).to(dtype)
    back = from_plain(json.loads(json.dumps(to_plain(value))))
    assert back.dtype == dtype
    assert th.equal(back, value)


def test_infinities_and_nan_come_back():
    assert from_plain(json.loads(json.dumps(to_plain([float("inf"), -float("inf")])))) == [float("inf"), -float("inf")]
    assert np.isnan(from_plain(json.loads(json.dumps(to_plain(float("nan"))))))


def test_numpy_numbers_become_python_s():
    assert to_plain({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}) == {"a": 0.5, "b": 3, "c": True}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2, 3}]}, r"^state\['a'\]\[1\] is set, which cannot be saved: give JSON values"),
        ({"a": {1: 2}}, r"^state\['a'\] has the key 1: keys must be text"),
        (th.nn.Linear(1, 1), r"^state is Linear, which cannot be saved"),
        (np.array([object()]), r"^state is ndarray, which cannot be saved"),
    ],
)
def test_other_values_are_named(value, words):
    with pytest.raises(TypeError, match=words):
        to_plain(value)
