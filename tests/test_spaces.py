import re

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.spaces import (
    ActionCodec,
    SpaceCodec,
    as_mask,
    as_tensor,
    has_image,
    sample_actions,
    torch_dtype,
    unknown_to_sb3,
    unusable_by_sb3,
    unusable_observations,
    vector_spaces,
)

finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def boxes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    low = draw(finite)
    return spaces.Box(low, low + draw(st.floats(0.5, 10)), shape, dtype=draw(st.sampled_from([np.float32, np.float64])))


leaves = st.one_of(
    boxes(),
    st.integers(2, 6).map(spaces.Discrete),
    st.lists(st.integers(2, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 5).map(spaces.MultiBinary),
)
any_space = st.one_of(leaves, st.dictionaries(st.sampled_from("abc"), leaves, min_size=1).map(spaces.Dict))


def batch(space: spaces.Space, rows: int) -> th.Tensor | dict[str, th.Tensor]:
    """Draw samples as SB3's replay buffer stores them."""
    if isinstance(space, spaces.Dict):
        return {key: batch(child, rows) for key, child in space.spaces.items()}
    return th.as_tensor(np.stack([np.atleast_1d(space.sample()) for _ in range(rows)]))


def rows_of(space: spaces.Space, obs, i: int):
    if isinstance(space, spaces.Dict):
        return {key: rows_of(child, obs[key], i) for key, child in space.spaces.items()}
    value = obs[i].numpy().astype(space.dtype)
    return value[0] if isinstance(space, spaces.Discrete) else value.reshape(space.shape)


@settings(max_examples=60, deadline=None)
@given(any_space, st.integers(0, 2**31 - 1))
def test_decoding_an_encoded_observation_gives_it_back(space, seed):
    space.seed(seed)
    codec, obs = SpaceCodec(space), batch(space, 5)
    encoded = codec.encode(obs)
    assert encoded.shape == (5, codec.dim)
    assert encoded.dtype == th.float32
    decoded = codec.decode(encoded)
    for key in obs if isinstance(obs, dict) else [None]:
        expected, got = (obs, decoded) if key is None else (obs[key], decoded[key])
        assert got.shape == expected.shape
        th.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(any_space, st.floats(0.1, 1e4), st.integers(0, 2**31 - 1))
def test_whatever_a_network_says_decodes_to_a_member(space, scale, seed):
    codec = SpaceCodec(space)
    flat = scale * th.randn(6, codec.dim, generator=th.Generator().manual_seed(seed))
    decoded = codec.decode(flat)
    assert all(space.contains(rows_of(space, decoded, i)) for i in range(6))
    # A projected vector is the encoding of what it decodes to.
    projected = codec.project(flat)
    th.testing.assert_close(codec.encode(codec.decode(projected)), projected)


def test_columns_know_what_they_are():
    codec = SpaceCodec(spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.MultiDiscrete([2, 3]), c=spaces.MultiBinary(2)))
    kinds = {group.key: group.kind for group in codec.groups}
    assert kinds == {"a": "continuous", "b": "categorical", "c": "binary"}
    assert [(group.start, group.stop) for group in codec.groups if group.key == "b"] == [(2, 4), (4, 7)]
    assert codec.mask("binary").nonzero().flatten().tolist() == [7, 8]
    assert codec.names[:3] == ["a[0]", "a[1]", "b[0]"]


def test_float64_bounds_are_rounded_inwards():
    # float32(0.1) is above 0.1: clipping to it would leave the space.
    space = spaces.Box(np.array([-0.1]), np.array([0.1]), dtype=np.float64)
    decoded = SpaceCodec(space).decode(th.tensor([[5.0], [-5.0]]))
    assert all(space.contains(row.numpy().astype(np.float64)) for row in decoded)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "is an image"),
        (spaces.Dict(camera=spaces.Box(0, 255, (8, 8, 3), np.uint8)), "key 'camera': .* is an image"),
        (spaces.Text(4), "Text is not one of Box"),
        (spaces.MultiDiscrete([[2, 2], [3, 3]]), "is nested"),
    ],
)
def test_other_spaces_are_refused_in_words(space, reason):
    with pytest.raises(UnsupportedSpace, match=reason):
        SpaceCodec(space)
    assert vector_spaces(space, spaces.Discrete(2)).startswith("observation space: ")


def test_actions_scale_to_the_environments_units_and_back():
    codec = ActionCodec(spaces.Box(np.array([[-2.0, 0.0]], np.float32), np.array([[2.0, 10.0]], np.float32)))
    env = codec.to_env(th.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]))
    assert env.shape == (3, 1, 2)
    assert env.reshape(3, 2).tolist() == [[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0]]
    assert codec.from_env(env).tolist() == [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]


def test_whole_numbers_are_the_nearest_ones():
    """Regression: they were truncated, so that 1 became 0 and the highest was hardly ever reached."""
    codec = ActionCodec(spaces.Box(0, 255, (1,), np.uint8))
    numbers = th.arange(256.0)[:, None]
    np.testing.assert_array_equal(codec.to_numpy(codec.from_env(numbers))[:, 0], np.arange(256))


def test_discrete_actions_are_one_hot_for_networks_and_unchanged_for_the_environment():
    codec = ActionCodec(spaces.Discrete(3))
    action = th.tensor([[2], [0]])
    assert codec.encode(action).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert th.equal(codec.to_env(action), action)
    assert codec.dim == 3


# ---- data types and odd spaces

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("dtype", [np.bool_, *INTEGERS, np.float16, np.float32, np.float64])
def test_stored_and_decoded_observations_have_one_type(dtype):
    """bool and wide unsigned integers were decoded as int64 and stored as themselves, which ended the first fit."""
    low, high = (0, 1) if dtype == np.bool_ else (-7, 7) if np.issubdtype(dtype, np.floating) else _range(dtype)
    space = spaces.Box(np.full(3, low, dtype), np.full(3, high, dtype), (3,), dtype)
    stored = np.stack([space.low, space.high, space.sample()])
    tensor, codec = as_tensor(stored), SpaceCodec(space)
    decoded = codec.decode(codec.encode(tensor))
    assert tensor.dtype == decoded.dtype == torch_dtype(np.dtype(dtype))
    assert decoded.double().numpy() == pytest.approx(stored.astype(np.float64), rel=1e-6)
    # Far beyond the bounds, values are clipped to members of the space.
    far = codec.decode(th.tensor([[1e30, -1e30, 0.0]])).numpy().astype(dtype)
    assert space.contains(far[0])


def _range(dtype):
    return np.iinfo(dtype).min, np.iinfo(dtype).max


@pytest.mark.parametrize("dtype", INTEGERS)
def test_whole_numbers_of_every_type_are_scaled_without_overflow(dtype):
    """SB3 subtracts the bounds in the space's own type, where 127 - (-128) is -1."""
    low, high = _range(dtype)
    codec = ActionCodec(spaces.Box(np.full(1, low, dtype), np.full(1, high, dtype), (1,), dtype))
    ends = np.array([[low], [high]], dtype)
    assert codec.scaled(ends).tolist() == [[-1.0], [1.0]]
    back = codec.unscaled(np.array([[-1.0], [1.0], [5.0]], np.float32))
    assert back.dtype == dtype
    assert back.astype(np.float64)[:, 0] == pytest.approx([float(low), float(high), float(high)])
    few = ActionCodec(spaces.Box(0, 4, (2,), dtype))
    assert few.unscaled(np.array([[0.2, -0.9]])).tolist() == [[2, 0]]
    assert few.nearest(th.tensor([[0.2, -0.9]])).tolist() == [[0.0, -1.0]]


def test_random_whole_actions_are_whole():
    space = spaces.Box(0, 4, (2,), np.int32)
    drawn = sample_actions(space, 200, th.Generator().manual_seed(0), th.device("cpu"))
    assert sorted(set(drawn.flatten().tolist())) == [-1.0, -0.5, 0.0, 0.5, 1.0]


EMPTY, BOX = spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (EMPTY, r"Box\(\[\], \[\], \(0,\), float32\) holds no numbers"),
        (spaces.Dict(wheels=BOX, arms=EMPTY), r"key 'arms': Box\(.* holds no numbers"),
        (spaces.Dict(), r"Dict\(\) has no parts"),
        (spaces.Dict({7: BOX}), r"key 7 of Dict\(7: .* keys have to be text"),
    ],
)
def test_observations_that_nothing_can_learn_from(space, words):
    assert re.search(words, unusable_observations(space))
    with pytest.raises(UnsupportedSpace, match=words):
        SpaceCodec(space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (EMPTY, "holds no numbers"),
        (spaces.Box(0, 1, (2,), np.bool_), "use MultiBinary"),
        (spaces.Box(-3e38, 3e38, (2,)), r"the distance between low and high at \[\[0\], \[1\]\] is infinite"),
        (spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0])), r"low and high are the same at \[\[1\]\]"),
        (spaces.Text(3), "is not one of Box, Discrete"),
    ],
)
def test_actions_that_leave_nothing_to_choose(space, words):
    with pytest.raises(UnsupportedSpace, match=words) as caught:
        ActionCodec(space)
    assert str(space) in str(caught.value)


@pytest.mark.parametrize(
    ("space", "extractor", "words"),
    [
        (spaces.Discrete(5, start=1), None, "counts categories from 0"),
        (spaces.MultiDiscrete([2, 3], start=[0, -1]), FlattenExtractor, "counts categories from 0"),
        (spaces.MultiDiscrete([[2, 3]]), FlattenExtractor, "is nested"),
        (spaces.Box(-1, 1, ()), FlattenExtractor, r"give it the shape \(1,\)"),
        (spaces.Dict({"c.d": BOX}), CombinedExtractor, "key 'c.d' of Dict"),
        (spaces.Dict({"keys": BOX}), CombinedExtractor, "key 'keys' of Dict"),
        (spaces.Dict({"": BOX}), CombinedExtractor, "key '' of Dict"),
        (
            spaces.Dict(eye=spaces.Box(0, 255, (3, 20, 40), np.uint8)),
            CombinedExtractor,
            "key 'eye': .* from 36 x 36 pixels on",
        ),
        (spaces.MultiDiscrete([100, 100], dtype=np.int8), FlattenExtractor, "counts its categories in int8, which overflows"),
    ],
)
def test_what_networks_of_sb3_fail_on(space, extractor, words):
    assert re.search(words, unusable_by_sb3(space, BOX, extractor))


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(5), spaces.MultiBinary((2, 2)), spaces.Dict({"a b": BOX, "ü": BOX})])
def test_what_networks_of_sb3_take(space):
    extractor = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    assert unusable_by_sb3(space, BOX, extractor) is None
    assert unusable_by_sb3(space, spaces.Discrete(3), extractor) is None
    assert "counts actions from 0" in unusable_by_sb3(space, spaces.Discrete(3, start=1), extractor)


def test_spaces_that_sb3_does_not_know_are_named_with_their_key():
    assert unknown_to_sb3(spaces.Dict(name=spaces.Text(3), x=BOX)).startswith("key 'name': Text(1, 3")
    assert "nested spaces are not supported" in unknown_to_sb3(spaces.Dict(inner=spaces.Dict(x=BOX)))
    assert unknown_to_sb3(spaces.Dict(x=BOX, n=spaces.Discrete(2))) is None


IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("space", "image"),
    [
        (IMAGE, True),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), True),
        (spaces.Box(0, 255, (8, 8, 5), np.uint8), True),  # any number of channels
        (spaces.Dict(speed=spaces.Box(-1, 1, (2,)), camera=IMAGE), True),
        (spaces.Dict(speed=spaces.Box(-1, 1, (2,))), False),
        (spaces.Box(0, 1, (3, 8, 8)), False),
        (spaces.Box(0, 255, (64,), np.uint8), False),
        (spaces.Discrete(3), False),
    ],
)
def test_an_image_is_bytes_on_three_axes(space, image):
    assert has_image(space) is image


@pytest.mark.parametrize("mask", [[0.5, 0.2, 0.0], [2, -1, 0], th.tensor([0.0, 3.0])])
def test_probabilities_and_logits_are_no_masks(mask):
    """They counted as true wherever they were not 0."""
    with pytest.raises(ValueError, match="action_mask holds numbers other than 0 and 1"):
        as_mask(mask)


def test_masks_of_numbers():
    assert as_mask([1, 0, 1]).tolist() == as_mask(np.array([1.0, 0.0, 1.0])).tolist() == [True, False, True]
