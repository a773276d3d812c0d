"""``pickle``, ``multiprocessing`` and ``joblib`` carry agents, as they carry SB3's."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from stable_baselines3 import TD3

from sb3_mbrl import MBPO, PETS, Dyna, DynaQ, model_based
from sb3_mbrl.algorithms.dreamer.v3 import DreamerV3
from sb3_mbrl.plugins import UnknownPartError, get_registry
from tests.helpers.agents import LEARNED, OffersMLP, learned, same, tiny

SMALL = {"seed": 0, "device": "cpu", "buffer_size": 300}
SEEN = np.array([1.0, 0.0, 0.5], np.float32)
PLANS = {
    "learning_starts": 30,
    "planner_kwargs": {"population": 8, "iterations": 1, "horizon": 2},
    "fit_kwargs": {"max_batches": 5},
}
AGENTS = {
    "mbpo": lambda: learned(reward_fn="auto", buffer_size=300),
    "mbpo off": lambda: learned(world_model=None, buffer_size=300),
    "twin": lambda: tiny(buffer_size=300),
    "td3": lambda: model_based(TD3)("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, **SMALL, **LEARNED),
    "dyna": lambda: Dyna("MlpPolicy", "CartPole-v1", learning_starts=30, **SMALL, **LEARNED),
    "dyna_q": lambda: DynaQ("QTablePolicy", "FrozenLake-v1", seed=0),
    "pets": lambda: PETS("MlpPolicy", "Pendulum-v1", **SMALL, **PLANS),
    "dreamer": lambda: DreamerV3("MlpPolicy", "Pendulum-v1", batch_size=2, batch_length=4, learning_starts=20, **SMALL),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_a_pickled_agent_trains_as_the_agent_itself(kind):
    agent = AGENTS[kind]().learn(60)
    content = pickle.dumps(agent)
    agent.set_random_seed(1)
    agent.learn(20, reset_num_timesteps=False)
    again = pickle.loads(content)
    again.set_random_seed(1)
    again.learn(20, reset_num_timesteps=False)
    assert same(again, agent)
    assert np.array_equal(again.replay_buffer.actions, agent.replay_buffer.actions)
    assert again.part_references == agent.part_references
    assert again.registry.plugins == agent.registry.plugins


def act(agent):
    return agent.predict(SEEN, deterministic=True)[0]


def test_other_processes_get_agents():
    agent = learned(buffer_size=300).learn(60)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (action,) = pool.map(act, [agent])
    assert np.array_equal(action, act(agent))


def test_joblib_carries_agents(tmp_path):
    joblib = pytest.importorskip("joblib")
    agent = learned(buffer_size=300).learn(60)
    joblib.dump(agent, tmp_path / "agent.joblib")
    assert np.array_equal(act(joblib.load(tmp_path / "agent.joblib")), act(agent))


def test_plugins_of_one_agent_are_carried():
    plugin = OffersMLP()
    agent = learned(plugins=[plugin], world_model="mine", world_model_kwargs={"hidden": [8]}, buffer_size=300)
    again = pickle.loads(pickle.dumps(agent))
    assert again.part_references == agent.part_references
    assert again.parts.selections["world_model"].spec.name == "mine"
    assert len(again.registry.plugins) == len(get_registry().plugins) + 1


def test_a_part_that_is_missing_in_the_other_process_is_named():
    agent = learned(plugins=[OffersMLP()], world_model="mine", world_model_kwargs={"hidden": [8]}, buffer_size=300)
    selection, key = agent.registry.as_pickled(agent.parts.selections["world_model"])
    with pytest.raises(UnknownPartError, match=r"world model 'mine' came from OffersMLP .*not available in this process"):
        get_registry().as_unpickled(selection, key)


def test_an_open_log_stays_behind(tmp_path):
    """SB3's own agents cannot be pickled after ``learn`` with ``verbose=1``, because the log holds the terminal."""
    agent = learned(verbose=1, buffer_size=300).learn(60)
    again = pickle.loads(pickle.dumps(agent))
    assert again.recorder.logger is None
    assert again.phase_seconds == agent.phase_seconds
    assert same(again, agent)
    again.learn(20, reset_num_timesteps=False)
    assert copy.deepcopy(agent).num_timesteps == 60
    assert agent.logger is agent.recorder.logger, "the agent itself keeps its log"


def test_the_class_is_not_changed(tmp_path):
    assert type(pickle.loads(pickle.dumps(learned(buffer_size=300)))) is MBPO
