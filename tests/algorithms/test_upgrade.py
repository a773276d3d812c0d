"""``from_model_free`` and ``to_model_free``: nothing that was learned is lost on the way."""

import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO, Dyna, model_based
from tests.algorithms.common import LEARNED, TINY, DictEnv, tiny
from tests.algorithms.test_factory import BASES, env_id, quick_settings

MODEL = {**LEARNED, "fit_freq": 60, "imagination_kwargs": TINY["imagination_kwargs"]}


def observations(agent) -> np.ndarray:
    return np.stack([agent.observation_space.sample() / 1e3 for _ in range(16)])


def same_state(left, right) -> None:
    """Networks and optimisers, to the last bit."""
    ours, theirs = left.get_parameters(), right.get_parameters()
    for name, state in theirs.items():
        if "optimizer" not in name:
            assert all(th.equal(ours[name][key], value) for key, value in state.items()), name
            continue
        assert state["state"], name
        for index, moments in state["state"].items():
            for key, value in moments.items():
                assert th.equal(th.as_tensor(ours[name]["state"][index][key]), th.as_tensor(value)), (name, key)


@pytest.mark.parametrize("base", BASES)
def test_there_and_back(base, tmp_path):
    old = base("MlpPolicy", env_id(base), **quick_settings()).learn(120)
    new = model_based(base).from_model_free(old, **MODEL)
    assert type(new) is model_based(base)
    assert np.array_equal(new.predict(observations(old), deterministic=True)[0].shape, (16, *old.action_space.shape))
    obs = observations(old)
    assert np.array_equal(new.predict(obs, deterministic=True)[0], old.predict(obs, deterministic=True)[0])
    same_state(new, old)
    assert (new.num_timesteps, new._n_updates) == (old.num_timesteps, old._n_updates)
    assert new.replay_buffer is old.replay_buffer
    assert new.learning_rate == old.learning_rate
    if base is SAC:
        assert float(new.log_ent_coef) == float(old.log_ent_coef)

    new.learn(60, reset_num_timesteps=False)
    assert new.num_timesteps == old.num_timesteps + 60
    assert new.world_model.fitted

    plain = new.to_model_free()
    assert type(plain) is base
    same_state(new, plain)
    assert np.array_equal(plain.predict(obs, deterministic=True)[0], new.predict(obs, deterministic=True)[0])
    assert set(vars(plain)) - set(vars(old)) == set(), "nothing of the model is left"
    assert plain.replay_buffer is new.replay_buffer
    plain.learn(20, reset_num_timesteps=False)


def test_the_zip_of_to_model_free_loads_without_this_package(tmp_path):
    agent = tiny()
    agent.learn(80)
    agent.to_model_free().save(tmp_path / "plain")
    code = (
        "import sys; sys.modules['sb3_mbrl'] = None\n"
        f"from stable_baselines3 import SAC; agent = SAC.load({str(tmp_path / 'plain')!r}); print(agent.num_timesteps)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "80"
    assert "Could not deserialize" not in told.stderr


def test_from_a_file_with_its_buffer(tmp_path):
    """The migration page's lines."""
    old = SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).learn(120)
    old.save(tmp_path / "old")
    old.save_replay_buffer(tmp_path / "old_buffer")
    agent = MBPO.from_model_free(
        SAC.load(tmp_path / "old"),
        env=gym.make("Pendulum-v1"),
        replay_buffer=tmp_path / "old_buffer.pkl",
        gradient_steps=3,
        **MODEL,
    )
    assert agent.replay_buffer.size() == 120
    assert agent.gradient_steps == 3
    before = agent._n_updates
    agent.learn(20, reset_num_timesteps=False)
    assert agent._n_updates == before + 3 * 20
    assert agent.world_model.n_fits >= 1, "fitted on the old rows, before the first new step"


def test_without_an_environment_it_can_act(tmp_path):
    old = SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).learn(20)
    old.save(tmp_path / "old")
    agent = MBPO.from_model_free(SAC.load(tmp_path / "old"), **MODEL)
    obs = observations(old)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], old.predict(obs, deterministic=True)[0])
    assert agent.to_model_free().env is None


def test_another_number_of_environments():
    old = SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).learn(80)
    with pytest.raises(ValueError, match=r"recorded with n_envs 1; this agent has 2"):
        MBPO.from_model_free(old, env=make_vec_env("Pendulum-v1", n_envs=2), **MODEL)


@pytest.mark.parametrize(
    ("cls", "given", "words"),
    [
        (MBPO, TD3, r"MBPO.from_model_free takes a SAC agent, not TD3: use model_based\(TD3\).from_model_free\(agent\)"),
        (Dyna, QRDQN, r"takes a DQN agent, not QRDQN: use model_based\(QRDQN\)"),
    ],
)
def test_an_agent_of_another_class(cls, given, words):
    agent = given("MlpPolicy", env_id(given), **quick_settings())
    with pytest.raises(TypeError, match=words):
        cls.from_model_free(agent)


def test_what_is_no_model_free_agent(tmp_path):
    with pytest.raises(TypeError, match=r"not str: load it first, SAC.load\(path\)"):
        MBPO.from_model_free("old.zip")
    with pytest.raises(TypeError, match=r"MBPO is model-based already"):
        MBPO.from_model_free(tiny())


def test_loading_with_the_wrong_class_points_the_way(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"looks like a plain SAC file.*MBPO.from_model_free\(old\)"):
        MBPO.load(tmp_path / "sac")
    tiny().save(tmp_path / "mbpo")
    with pytest.raises(ValueError, match=r"saved by MBPO.*MBPO.load\(path\).to_model_free\(\)"):
        SAC.load(tmp_path / "mbpo")
    with pytest.raises(ValueError, match=r"saved by MBPO.*MBPO.load\(path\)"):
        model_based(TD3).load(tmp_path / "mbpo")


# ------------------------------------------------------------------------------------------------------------- replay buffers


def test_a_replay_buffer_of_something_else(tmp_path):
    agent = tiny()
    before = agent.replay_buffer
    other = SAC("MultiInputPolicy", DictEnv(), **quick_settings())
    other.save_replay_buffer(tmp_path / "other")
    with pytest.raises(ValueError, match=r"recorded with observation_space Dict.*this agent has Box"):
        agent.load_replay_buffer(tmp_path / "other")
    wide = ReplayBuffer(50, agent.observation_space, gym.spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match=r"recorded with action_space Box\(-1.0, 1.0, \(3,\)"):
        agent._take_replay_buffer(wide)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"list.pkl: The replay buffer must inherit from ReplayBuffer"):
        agent.load_replay_buffer(tmp_path / "list.pkl")
    assert agent.replay_buffer is before


def test_a_space_change_on_set_env():
    agent = tiny()
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        agent.set_env(gym.make("MountainCarContinuous-v0"))
