"""``from_model_free`` and ``to_model_free``: nothing that was learned is lost."""

import pickle
import random
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, model_based
from tests.helpers.agents import LEARNED, TINY, Counter, DictEnv, tiny
from tests.helpers.model_free import BASES, env_id, quick_settings

NO_TIMEOUTS = {"handle_timeout_termination": False}
MODEL = {**LEARNED, "fit_freq": 60, "imagination_kwargs": TINY["imagination_kwargs"]}


def observations(agent) -> np.ndarray:
    return np.stack([agent.observation_space.sample() / 1e3 for _ in range(16)])


def same_state(left, right) -> None:
    """Compare networks and optimisers, to the last bit."""
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
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "80"
    assert "Could not deserialize" not in completed.stderr


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
        (
            MBPO,
            PPO,
            r"takes a SAC agent, not PPO, which learns from its own rollouts .* learned model: ModelVecEnv",
        ),
    ],
)
def test_an_agent_of_another_class(cls, given, words):
    agent = PPO("MlpPolicy", "Pendulum-v1") if given is PPO else given("MlpPolicy", env_id(given), **quick_settings())
    with pytest.raises(TypeError, match=words):
        cls.from_model_free(agent)


def test_what_is_no_model_free_agent(tmp_path):
    with pytest.raises(TypeError, match=r"not str: load it first, SAC.load\(path\)"):
        MBPO.from_model_free("old.zip")
    with pytest.raises(TypeError, match=r"MBPO is model-based already"):
        MBPO.from_model_free(tiny())
    with pytest.raises(TypeError, match=r"DynaQ is model-based already"):
        Dyna.from_model_free(DynaQ("QTablePolicy", "DynaMaze-v0"))


def test_loading_with_the_wrong_class_points_the_way(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"looks like a plain SAC file.*MBPO.from_model_free\(SAC.load\(path\), env=...\)"):
        MBPO.load(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"a plain SAC file.*: model_based\(SAC\).from_model_free\(SAC.load\(path\)"):
        Dyna.load(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"a plain SAC file. Load it with the class it was saved with"):
        DynaQ.load(tmp_path / "sac")
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"looks like a file of an on-policy class .* in a learned model: ModelVecEnv"):
        MBPO.load(tmp_path / "ppo")
    with pytest.raises(ValueError) as caught:
        tiny().set_parameters(tmp_path / "sac")
    assert "Parameters of a model-free class lack the world model; exact_match=False keeps" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match=r"a plain SAC file. Load it with the class it was saved with.$"):
        PETS.load(tmp_path / "sac")
    tiny().save(tmp_path / "mbpo")
    with pytest.raises(ValueError, match=r"saved by MBPO.*MBPO.load\(path\).to_model_free\(\)"):
        SAC.load(tmp_path / "mbpo")
    with pytest.raises(ValueError, match=r"saved by MBPO.*MBPO.load\(path\)"):
        model_based(TD3).load(tmp_path / "mbpo")


# ------------------------------------------------------------------------------------------------------------- replay buffers


def test_a_table_is_not_taken_for_a_network(tmp_path):
    DynaQ("QTablePolicy", "DynaMaze-v0", seed=0).save(tmp_path / "table")
    with pytest.raises(ValueError, match=r"was saved by DynaQ, not by Dyna: load it with DynaQ.load\(path\)"):
        Dyna.load(tmp_path / "table")
    with pytest.raises(ValueError, match=r"saved by DynaQ \(load it with DynaQ.load\(path\)\)"):
        DQN.load(tmp_path / "table")


def test_a_replay_buffer_of_something_else(tmp_path):
    agent = tiny()
    before = agent.replay_buffer
    other = SAC("MultiInputPolicy", DictEnv(), **quick_settings())
    other.save_replay_buffer(tmp_path / "other")
    with pytest.raises(ValueError, match=r"recorded with observation_space Dict.*this agent has Box"):
        agent.load_replay_buffer(tmp_path / "other")
    wide = ReplayBuffer(50, agent.observation_space, gym.spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match=r"recorded with action_space Box\(-1.0, 1.0, \(3,\)"):
        agent.take_replay_buffer(wide)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(
        ValueError,
        match=r"list.pkl is not a replay buffer that was saved with save_replay_buffer\(\): .*must inherit from ReplayBuffer",
    ):
        agent.load_replay_buffer(tmp_path / "list.pkl")
    assert agent.replay_buffer is before


def test_a_space_change_on_set_env():
    agent = tiny()
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        agent.set_env(gym.make("MountainCarContinuous-v0"))


# ---- in the middle of training


def test_a_callback_may_export_a_plain_agent_without_changing_the_run():
    """Loading seeds the global streams, so exports every N steps made the agent draw the same noise every time."""
    agent = tiny().learn(60)
    before = th.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    plain = agent.to_model_free()
    assert th.equal(th.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert plain.seed == agent.seed == 0


@pytest.mark.parametrize("options", [{}, {"n_steps": 3}, {"optimize_memory_usage": True, "replay_buffer_kwargs": NO_TIMEOUTS}])
def test_the_episode_continues_in_the_agents_own_environment(options):
    """Regression: the environment was reset, and the newest row was joined to the first one after the reset."""
    old = SAC("MlpPolicy", Counter(), **quick_settings(), **options).learn(80)
    new = MBPO.from_model_free(old, **MODEL)
    new.learn(20, reset_num_timesteps=False)
    plain = new.to_model_free()
    plain.learn(20, reset_num_timesteps=False)
    buffer = plain.replay_buffer
    np.testing.assert_array_equal(buffer.observations[:120, 0, 0], np.arange(120))
    assert not buffer.dones[:119].any()


def test_in_another_environment_it_ends():
    old = SAC("MlpPolicy", Counter(), **quick_settings()).learn(80)
    new = MBPO.from_model_free(old, Counter(), **MODEL).learn(20, reset_num_timesteps=False)
    buffer = new.replay_buffer
    assert (buffer.observations[80, 0, 0], buffer.dones[79, 0], buffer.timeouts[79, 0]) == (0, 1, 1)


class Paid(BitFlippingEnv):
    """An environment with a reward of its own, which shows whose ``compute_reward`` relabels."""

    def __init__(self, reward: float) -> None:
        super().__init__(n_bits=3, continuous=True, max_steps=5)
        self.reward = reward

    def compute_reward(self, achieved_goal, desired_goal, _info):
        return np.full(len(achieved_goal) if np.ndim(achieved_goal) > 1 else 1, self.reward)


def test_goals_are_relabelled_by_the_environment_one_is_in():
    settings = {**quick_settings(), "replay_buffer_class": HerReplayBuffer}
    old = SAC("MultiInputPolicy", Paid(-1.0), **settings).learn(60)
    new = MBPO.from_model_free(old, Paid(-7.0), world_model=None)
    assert new.replay_buffer.env is new.env
    rewards = new.replay_buffer.sample(256).rewards
    assert (rewards == -7.0).any(), "relabelled rows"


# ---- what is refused


class MySAC(SAC):
    def train(self, gradient_steps, batch_size=64):
        super().train(gradient_steps, batch_size)


def test_a_class_of_ones_own_keeps_its_own_methods():
    agent = MySAC("MlpPolicy", "Pendulum-v1", **quick_settings())
    with pytest.raises(TypeError, match=r"takes a SAC agent, not MySAC: use model_based\(MySAC\)"):
        MBPO.from_model_free(agent)
    assert isinstance(model_based(MySAC).from_model_free(agent, **MODEL), MySAC)


def test_misspelt_names_are_reported(tmp_path):
    agent = SAC("MlpPolicy", "Pendulum-v1", **quick_settings())
    with pytest.raises(TypeError, match=r"MBPO.from_model_free\(..., real_ration=...\): .*Did you mean 'real_ratio'\?"):
        MBPO.from_model_free(agent, real_ration=0.1)
    tiny().save(tmp_path / "agent")
    with pytest.raises(TypeError, match=r"MBPO.load\(..., fit_frq=...\): .*Did you mean 'fit_freq'\?"):
        MBPO.load(tmp_path / "agent", fit_frq=3)


def test_a_model_that_was_off_is_not_switched_on_by_a_ratio(tmp_path):
    tiny(real_ratio=1.0).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"saved with real_ratio=1, so without a world model.*from_model_free"):
        MBPO.load(tmp_path / "agent", real_ratio=0.5)
    assert MBPO.load(tmp_path / "agent").world_model is None


def test_buffers_of_another_kind_are_refused():
    three = SAC("MlpPolicy", "Pendulum-v1", **quick_settings(), n_steps=3).learn(60)
    one = SAC("MlpPolicy", "Pendulum-v1", **quick_settings()).learn(60)
    for agent, buffer in ((three, one.replay_buffer), (one, three.replay_buffer)):
        with pytest.raises(ValueError, match=r"The replay buffer is a \w+, and this agent was made for a \w+"):
            MBPO.from_model_free(agent, replay_buffer=buffer, **MODEL)


def test_files_that_are_no_replay_buffers(tmp_path):
    agent = tiny()
    with pytest.raises(FileNotFoundError, match=r"There is no replay buffer .*gone.pkl"):
        agent.load_replay_buffer(tmp_path / "gone.pkl")
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "torn.pkl").write_bytes(pickle.dumps(agent.replay_buffer)[:100])
    for name in ("empty.pkl", "torn.pkl"):
        with pytest.raises(ValueError, match=rf"{name} is not a replay buffer that was saved with save_replay_buffer\(\)"):
            agent.load_replay_buffer(tmp_path / name)


def test_an_environment_by_its_id():
    agent = SAC("MlpPolicy", "Pendulum-v1", **quick_settings())
    assert MBPO.from_model_free(agent, "Pendulum-v1", **MODEL).get_env().num_envs == 1
