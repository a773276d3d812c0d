"""Checkpoints of one moment: what they hold, and reading them without unpickling anything."""

import pickle
import random
import zipfile

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, model_based
from sb3_mbrl.agent.manifest import MANIFEST, DamagedError, write_manifest
from sb3_mbrl.checkpoints import CheckpointFolder, CheckpointSet
from tests.helpers.agents import LEARNED, TINY
from tests.helpers.dreamers import small


def makers():
    shared = {**TINY, **LEARNED, "learning_starts": 20, "fit_freq": 20, "buffer_size": 200}
    shared["policy_kwargs"] = {"net_arch": [16]}  # of its own: classes of SB3 write into it
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    no_imagination = {name: value for name, value in shared.items() if name not in ("imagination_kwargs", "gradient_steps")}
    del no_imagination["batch_size"], no_imagination["policy_kwargs"]
    planner = {"horizon": 3, "population": 8, "elites": 3, "iterations": 1}
    return {
        "MBPO": lambda: MBPO("MlpPolicy", "Pendulum-v1", **shared),
        "Dyna": lambda: Dyna("MlpPolicy", "CartPole-v1", n_steps=2, **shared),
        "TD3": lambda: model_based(TD3)(
            "MlpPolicy",
            "Pendulum-v1",
            action_noise=noise,
            **{**shared, "policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.Tanh}},
        ),
        "PETS": lambda: PETS("MlpPolicy", "Pendulum-v1", n_particles=2, planner_kwargs=planner, **no_imagination),
        "DynaQ": lambda: DynaQ("QTablePolicy", "FrozenLake-v1", seed=0),
        "DreamerV3": lambda: small(train_freq=20),
    }


@pytest.mark.parametrize("name", list(makers()))
def test_every_class_is_saved_and_read_without_pickles(name, tmp_path, monkeypatch):
    agent = makers()[name]().learn(45)
    saved = CheckpointFolder(tmp_path).save(agent)
    assert saved.manifest["pickled"] == {}
    assert saved.manifest["lacks"] == {}
    assert (saved.step, saved.manifest["n_envs"]) == (agent.num_timesteps, 1)
    assert {path.name for path in saved.path.iterdir()} == {"manifest.json", "model.zip", "replay_buffer.npz"}
    for module in (pickle, cloudpickle):
        for function in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, function, None, raising=False)
    loaded = saved.load(type(agent), safe=True)
    monkeypatch.undo()
    ours, theirs = loaded.get_parameters(), agent.get_parameters()
    assert ours.keys() == theirs.keys()
    for part in ours:
        for key, value in ours[part].items():
            assert not isinstance(value, th.Tensor) or th.equal(value, theirs[part][key]), (part, key)
    assert loaded.num_timesteps == agent.num_timesteps
    assert loaded.replay_buffer.size() == agent.replay_buffer.size()
    obs = agent.observation_space.sample()
    expected, _ = agent.predict(obs, deterministic=True)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)


def test_the_loaded_agent_is_that_of_the_pickles(tmp_path):
    """Every attribute of a file without pickles is the one that SB3's pickles give."""
    agent = makers()["TD3"]().learn(45)
    agent.save(tmp_path / "pickled")
    agent.save(tmp_path / "plain", safe=True)
    pickled, plain = (type(agent).load(tmp_path / name) for name in ("pickled", "plain"))
    assert set(vars(pickled)) == set(vars(plain))
    for name in ("observation_space", "action_space", "train_freq", "policy_kwargs", "replay_buffer_class", "ep_info_buffer"):
        assert getattr(plain, name) == getattr(pickled, name)
        assert type(getattr(plain, name)) is type(getattr(pickled, name))
    assert (plain.action_space.sample() == pickled.action_space.sample()).all()
    assert (plain._last_obs == pickled._last_obs).all()
    assert plain.lr_schedule(0.5) == pickled.lr_schedule(0.5)
    assert type(plain.action_noise) is NormalActionNoise


def test_pickles_are_refused_by_name(tmp_path):
    agent = makers()["MBPO"]()
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a holds pickles \(.*observation_space.*\), which .*safe=True refuses them"):
        MBPO.load(tmp_path / "a", safe=True)


class Evil:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_a_pickle_in_a_file_without_pickles_is_refused(tmp_path):
    agent = makers()["MBPO"]()
    agent.mine = Evil()
    with pytest.raises(TypeError, match=r"mine is .*Evil.* can only be pickled"):
        agent.save(tmp_path / "a", safe=True)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds pickles \(.*mine"):
        MBPO.load(tmp_path / "a", safe=True)
    # A checkpoint holds the pickle, and says so.
    saved = CheckpointFolder(tmp_path / "sets").save(agent)
    assert set(saved.manifest["pickled"]) == {"model.zip"}
    with pytest.raises(ValueError, match=r"model.zip holds pickles"):
        saved.load(MBPO, safe=True)


def test_sb3_own_classes_are_saved_as_pickles(tmp_path):
    agent = SAC("MlpPolicy", "Pendulum-v1", buffer_size=50, device="cpu", policy_kwargs={"net_arch": [8]}, learning_starts=100)
    agent.learn(20)
    saved = CheckpointFolder(tmp_path).save(agent)
    assert set(saved.manifest["pickled"]) == {"model.zip"}
    assert saved.load(SAC).replay_buffer.size() == 20


def test_normalisation_returns(tmp_path):
    def env():
        return VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))

    agent = MBPO("MlpPolicy", env(), **TINY, world_model="pendulum").learn(30)
    saved, fresh = CheckpointFolder(tmp_path).save(agent), env()
    loaded = saved.load(MBPO, fresh, safe=True)
    for name in ("obs_rms", "ret_rms"):
        ours, theirs = getattr(loaded.get_vec_normalize_env(), name), getattr(agent.get_vec_normalize_env(), name)
        assert (ours.mean == theirs.mean).all()
        assert ours.count == theirs.count > 1


def test_every_flipped_bit_is_noticed_and_named(tmp_path):
    agent = makers()["MBPO"]().learn(45)
    saved, generator = CheckpointFolder(tmp_path).save(agent), random.Random(0)
    files = sorted(saved.path.iterdir())
    for turn in range(200):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=path.name):
            saved.verify()
        with pytest.raises(DamagedError, match=path.name):
            saved.load(MBPO)
        path.write_bytes(whole)
    assert zipfile.is_zipfile(saved.model)
    saved.load(MBPO, safe=True)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(DamagedError, match=r"manifest.json is missing"):
        CheckpointSet(tmp_path).verify()


@pytest.mark.parametrize("name", ["step", "n_envs", "class", "lacks", "pickled"])
def test_a_manifest_without_its_facts(tmp_path, name):
    """The set was taken for intact, and then a KeyError ended the run that was to be resumed."""
    saved = CheckpointFolder(tmp_path).save(makers()["DynaQ"]().learn(5))
    facts = {key: value for key, value in saved.manifest.items() if key not in (name, "format", "files", "checksum")}
    (saved.path / MANIFEST).unlink()
    write_manifest(saved.path, facts)
    with pytest.raises(DamagedError, match=rf"manifest.json is damaged: its '{name}' is None"):
        saved.verify()
    assert CheckpointFolder(tmp_path).newest().chosen is None


def test_a_folder_without_an_agent_is_no_checkpoint(tmp_path):
    saved = CheckpointFolder(tmp_path).save(makers()["DynaQ"]().learn(5))
    facts = {key: value for key, value in saved.manifest.items() if key not in ("format", "files", "checksum")}
    for path in (saved.path / MANIFEST, saved.model):
        path.unlink()
    write_manifest(saved.path, facts)
    with pytest.raises(DamagedError, match=r"is no checkpoint: its manifest.json lists no model.zip"):
        saved.verify()
