import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.spaces import ActionCodec, SpaceCodec, has_image, vector_spaces

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
