"""Saved replay buffers: checksums, plain arrays, and what is refused."""

import hashlib
import io
import json
import pickle
import random
from typing import ClassVar

import cloudpickle
import numpy as np
import pytest
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_mbrl import MBPO, Dyna, DynaQ
from tests.helpers.agents import DictEnv

OFF = {"learning_starts": 10_000, "buffer_size": 90, "seed": 0, "device": "cpu", "world_model": None}


def same(one, other, ignore=("env", "device")):
    """Compare every attribute, and all rows."""
    assert type(one) is type(other)
    assert set(vars(one)) == set(vars(other))
    for name, value in vars(one).items():
        theirs = vars(other)[name]
        if name in ignore:
            continue
        pairs = [(value[key], theirs[key]) for key in value] if isinstance(value, dict) else [(value, theirs)]
        for a, b in pairs:
            if isinstance(a, np.ndarray):
                assert (a.dtype, a.shape) == (b.dtype, b.shape), name
                assert repr(a.tolist()) == repr(b.tolist()), name
            else:
                assert a == b, name


@pytest.fixture(scope="module")
def dyna():
    return Dyna("MlpPolicy", "CartPole-v1", **OFF).learn(60)


def test_sb3_reads_a_pickle_with_a_checksum(dyna, tmp_path):
    dyna.save_replay_buffer(tmp_path / "a")
    plain = DQN("MlpPolicy", "CartPole-v1", device="cpu")
    plain.load_replay_buffer(tmp_path / "a.pkl")
    assert plain.replay_buffer.size() == 60
    same(load_from_pkl(tmp_path / "a"), dyna.replay_buffer)


def test_every_flipped_bit_is_noticed_and_named(dyna, tmp_path):
    """Half of the bits in the header, where a flipped one used to give an error that did not name the file, or none."""
    dyna.save_replay_buffer(tmp_path / "a")
    good, generator, agent = (tmp_path / "a.pkl").read_bytes(), random.Random(0), Dyna("MlpPolicy", "CartPole-v1", **OFF)
    for turn in range(200):
        damaged = bytearray(good)
        # Also in the checksum itself, and in the mark before it.
        place = (generator.randrange(len(good)), generator.randrange(900), len(good) - 1 - generator.randrange(48))[turn % 3]
        damaged[place] ^= 1 << generator.randrange(8)
        (tmp_path / "c.pkl").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c.pkl is damaged"):
            agent.load_replay_buffer(tmp_path / "c")
    assert agent.replay_buffer.size() == 0


def test_files_of_sb3_have_no_checksum_and_are_read(tmp_path):
    plain = DQN("MlpPolicy", "CartPole-v1", device="cpu", learning_starts=1000, buffer_size=90).learn(32)
    plain.save_replay_buffer(tmp_path / "a")
    agent = Dyna("MlpPolicy", "CartPole-v1", **OFF)
    agent.load_replay_buffer(tmp_path / "a")
    assert agent.replay_buffer.size() == 32
    whole = (tmp_path / "a.pkl").read_bytes()
    for content in (whole[:-50], whole[:40], b"", b"no pickle", pickle.dumps({"a": 1}), whole[:20] + b"\xff" + whole[21:]):
        (tmp_path / "b.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=r"b.pkl"):
            agent.load_replay_buffer(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"There is no replay buffer .*c"):
        agent.load_replay_buffer(tmp_path / "c")


def test_open_files(dyna):
    file = io.BytesIO()
    dyna.save_replay_buffer(file)
    file.seek(0)
    agent = Dyna("MlpPolicy", "CartPole-v1", **OFF)
    agent.load_replay_buffer(file)
    same(agent.replay_buffer, dyna.replay_buffer)
    content = bytearray(file.getvalue())
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="is damaged: its content does not fit its checksum"):
        agent.load_replay_buffer(io.BytesIO(content))


@pytest.mark.parametrize("settings", [{}, {"n_steps": 3}, {"optimize_memory_usage": True}])
@pytest.mark.parametrize("steps", [0, 40, 130])
def test_plain_arrays_return(settings, steps, tmp_path, monkeypatch):
    if "optimize_memory_usage" in settings:
        settings = {**settings, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = Dyna("MlpPolicy", "CartPole-v1", **{**OFF, **settings})
    if steps:
        agent.learn(steps)
    assert isinstance(agent.replay_buffer, NStepReplayBuffer) == ("n_steps" in settings)
    agent.save_plain_replay_buffer(tmp_path / "a.npz")
    again = Dyna("MlpPolicy", "CartPole-v1", **{**OFF, **settings})
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    again.load_replay_buffer(tmp_path / "a.npz", safe=True)
    monkeypatch.undo()
    same(again.replay_buffer, agent.replay_buffer)


def test_dictionaries_and_side_store_return(tmp_path):
    settings = {"learning_starts": 1000, "buffer_size": 200, "seed": 0, "device": "cpu", "world_model": "mlp"}
    agent, again = (MBPO("MultiInputPolicy", DictEnv(), **settings) for _ in range(2))
    agent.learn(30)
    agent.real.side_of(agent.replay_buffer).put("mine", 3, np.array([7.0]))
    agent.save_plain_replay_buffer(tmp_path / "a.npz")
    again.load_replay_buffer(tmp_path / "a.npz", safe=True)
    same(again.replay_buffer, agent.replay_buffer)
    assert again.real.side_of(again.replay_buffer).arrays["mine"][3, 0] == 7.0


def test_hindsight_returns(tmp_path):
    from stable_baselines3.common.envs import BitFlippingEnv

    def make(**kwargs):
        env = BitFlippingEnv(n_bits=4, continuous=False, max_steps=4)
        settings = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
        return Dyna("MultiInputPolicy", env, **{**OFF, **settings, **kwargs})

    agent, again = make().learn(30), make()
    agent.save_plain_replay_buffer(tmp_path / "a.npz")
    again.load_replay_buffer(tmp_path / "a.npz", truncate_last_traj=False, safe=True)
    same(again.replay_buffer, agent.replay_buffer)
    assert again.replay_buffer.env is again.env
    np.random.seed(0)
    expected = agent.replay_buffer.sample(8)
    np.random.seed(0)
    assert (again.replay_buffer.sample(8).rewards == expected.rewards).all()


def test_only_what_is_filled_is_stored(tmp_path):
    agent = Dyna("MlpPolicy", "CartPole-v1", **{**OFF, "buffer_size": 100_000}).learn(20)
    agent.save_plain_replay_buffer(tmp_path / "a.npz")
    agent.save_replay_buffer(tmp_path / "a.pkl")
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    assert (tmp_path / "a.pkl").stat().st_size > 1_000_000


class OfAUser(ReplayBuffer):
    pass


def test_what_is_refused(dyna, tmp_path):
    dyna.save_replay_buffer(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match=r"a.pkl is a pickle, which can run any code when it is loaded: safe=True refuses it"):
        dyna.load_replay_buffer(tmp_path / "a.pkl", safe=True)
    other = Dyna("MlpPolicy", "CartPole-v1", replay_buffer_class=OfAUser, **OFF)
    with pytest.raises(TypeError, match=r"OfAUser.* can only be pickled"):
        other.save_plain_replay_buffer(tmp_path / "b.npz")
    lake = DynaQ("QTablePolicy", "FrozenLake-v1")
    before = lake.replay_buffer
    dyna.save_plain_replay_buffer(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="The replay buffer was recorded with observation_space"):
        lake.load_replay_buffer(tmp_path / "c.npz")
    assert lake.replay_buffer is before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pos", {}),
        ("pos", 10**6),
        ("n_envs", 2),
        ("buffer_size", 10**13),
        ("action_dim", 7),
        ("full", "no"),
        ("timeouts", [1]),
    ],
)
def test_plain_values_that_do_not_fit_each_other(dyna, tmp_path, name, value):
    """TypeError: unsupported operand type(s) in the next ``learn``, or a MemoryError without a name."""
    dyna.save_plain_replay_buffer(tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    content = json.loads(arrays["json"].tobytes())
    content["value"]["state"][name] = value
    np.savez(tmp_path / "b.npz", **{**arrays, "json": np.frombuffer(json.dumps(content).encode(), np.uint8)})
    agent = Dyna("MlpPolicy", "CartPole-v1", **OFF)
    before = agent.replay_buffer
    with pytest.raises(ValueError, match=r"b.npz is not a replay buffer that can be read"):
        agent.load_replay_buffer(tmp_path / "b.npz")
    assert agent.replay_buffer is before


def test_a_space_without_its_bounds(dyna, tmp_path):
    dyna.save_plain_replay_buffer(tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    content = json.loads(arrays["json"].tobytes())
    content["value"]["state"]["observation_space"]["state"]["low"] = None
    np.savez(tmp_path / "b.npz", **{**arrays, "json": np.frombuffer(json.dumps(content).encode(), np.uint8)})
    with pytest.raises(ValueError, match=r"b.npz is not a replay buffer that can be read"):
        Dyna("MlpPolicy", "CartPole-v1", **OFF).load_replay_buffer(tmp_path / "b.npz")


class Calls:
    """An object whose pickle calls something when it is loaded."""

    called: ClassVar[list[str]] = []

    def __reduce__(self):
        return self.called.append, ("called",)


@pytest.mark.parametrize("form", ["path", "file", "checksum", "npz"])
def test_a_hostile_pickle_is_refused_by_name_and_calls_nothing(dyna, tmp_path, form):
    path = tmp_path / ("a.npz" if form == "npz" else "a.pkl")
    content = b"PK\x03\x04" * (form == "npz") + cloudpickle.dumps(Calls())
    seal = b"\nsb3-mbrl sha256\n" + hashlib.sha256(content).digest()
    path.write_bytes(content + seal * (form == "checksum"))
    before = dyna.replay_buffer
    with path.open("rb") as file, pytest.raises(ValueError, match=path.name):
        dyna.load_replay_buffer(file if form == "file" else path, safe=True)
    assert Calls.called == []
    assert dyna.replay_buffer is before
