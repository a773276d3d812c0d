"""Values as JSON and plain arrays."""

import json
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_mbrl.agent.plain_values import TAG, Arrays, NotPlainError, decode, encode


def there_and_back(value):
    """Through JSON text, with arrays within it and beside it: both give the same."""
    inline = decode(json.loads(json.dumps(encode(value))))
    stored = {}
    text = json.dumps(encode(value, Arrays(stored)))
    assert encode(decode(json.loads(text), Arrays(stored))) == encode(value)
    return inline


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "x", None, True], "b": {}},
        {1: "a", (2, "b"): [3]},
        {TAG: "not a tag"},
        (1, (2, [3])),
        OrderedDict(a=1),
        {1, 2},
        frozenset({"a"}),
        deque([{"r": 1.0}], maxlen=3),
        float("inf"),
        TrainFreq(4, TrainFrequencyUnit.EPISODE),
        TrainFrequencyUnit.STEP,
        np.dtype(np.float32),
        np.float64,
        th.device("cpu"),
        th.nn.Tanh,
        th.optim.Adam,
        NatureCNN,
        HerReplayBuffer,
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(2),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Box(0, 255, (2, 2), np.uint8)])),
    ],
)
def test_values_return(value):
    result = there_and_back(value)
    assert result == value
    assert type(result) is type(value)
    if isinstance(value, deque):
        assert result.maxlen == 3


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8", "complex64", "U3", "S2", "datetime64[s]"])
def test_arrays_return(dtype):
    for array in (np.zeros((2, 3)).astype(dtype), np.zeros((0, 2)).astype(dtype), np.zeros(()).astype(dtype)):
        result = there_and_back(array)
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        assert (result == array).all()
    number = np.float32(0.1)
    assert there_and_back(number) == number
    assert type(there_and_back(number)) is np.float32


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16, th.bool, th.int64])
def test_tensors_return(dtype):
    for tensor in (th.ones(2, 3).to(dtype), th.zeros(0, 2).to(dtype), th.ones(()).to(dtype)):
        result = there_and_back(tensor)
        assert (result.dtype, result.shape) == (tensor.dtype, tensor.shape)
        assert th.equal(result, tensor)


def test_objects_in_arrays_return():
    array = np.array([[{}, {"a": 1}]])
    result = there_and_back(array)
    assert (result.dtype, result.shape) == (object, (1, 2))
    assert result.tolist() == array.tolist()


def test_spaces_and_generators_continue_their_streams():
    space = spaces.Box(-1, 1, (2,))
    space.seed(3)
    space.sample()
    assert (there_and_back(space).sample() == space.sample()).all()
    for bits in (np.random.PCG64, np.random.MT19937, np.random.Philox):
        generator = np.random.Generator(bits(1))
        generator.random()
        assert there_and_back(generator).random() == generator.random()


def test_schedules_and_noise_return():
    assert there_and_back(FloatSchedule(LinearSchedule(1.0, 0.0, 0.5)))(0.75) == 0.5
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))
    noise()
    vectorised = VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.ones(2)), 3)
    for one in (noise, vectorised):
        again = there_and_back(one)
        np.random.seed(0)
        expected = one()
        np.random.seed(0)
        assert (again() == expected).all()


class Subclass(spaces.Discrete):
    pass


@pytest.mark.parametrize(
    "value", [lambda: 1, object(), Subclass(3), Subclass, np.array([object()]), FloatSchedule(lambda x: x)]
)
def test_what_can_only_be_pickled_is_named(value):
    with pytest.raises(NotPlainError, match=r"setting\['a'\].* can only be pickled"):
        encode({"a": value}, where="setting")


@pytest.mark.parametrize(
    "hostile",
    [
        {TAG: "class", "of": "os:system"},
        {TAG: "class", "of": "subprocess:Popen"},
        {TAG: "class", "of": "torch:load"},
        {TAG: "class", "of": "torch.nn.modules.container:Sequential"},
        {TAG: "class", "of": "torch.fx.graph_module:GraphModule"},
        {TAG: "class", "of": "no_such_module:Adam"},
        {TAG: "class", "of": f"{__name__}:Subclass"},
        {TAG: "class", "of": ["x"]},
        {TAG: "object", "of": "Popen", "state": {}},
        {TAG: "object", "of": "Box", "state": 5},
        {TAG: "enum", "of": "TrainFrequencyUnit", "member": "__class__"},
        {TAG: "generator", "of": "load", "state": {}},
        {TAG: "generator", "of": "PCG64", "state": {}},
        {TAG: "tensor", "of": "load", "size": [], "bytes": {}},
        {TAG: "array", "dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="},
        {TAG: "array", "dtype": "f4", "shape": [5], "data": "AAAAAA=="},
        {TAG: "array", "name": "no such array"},
        {TAG: "no such tag"},
        {TAG: ["a list"]},
        {TAG: "tuple"},
        {TAG: "dict", "items": [[{}, 1]]},
    ],
)
def test_hostile_values_are_refused(hostile):
    with pytest.raises(ValueError, match=r"it (holds|names)|is no type|cannot reshape|state must be"):
        decode([hostile])


def test_nothing_is_nested_too_deeply():
    value = {}
    for _ in range(100_000):
        value = {"a": value}
    with pytest.raises(ValueError, match="it holds a value that is not one of sb3-mbrl's plain values"):
        decode(value)
