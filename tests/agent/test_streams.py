"""The random streams that continue after ``load``."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import MBPO, PETS
from tests.helpers.resumed import IMAGINED, MODEL, PLANNED


def global_streams():
    return random.getstate(), repr(np.random.get_state()), th.get_rng_state().numpy().tobytes()


def agent(env="Pendulum-v1", **settings):
    return MBPO("MlpPolicy", env, **{**MODEL, **IMAGINED, **settings})


@pytest.fixture
def saved(tmp_path):
    first = agent().learn(40)
    first.save(tmp_path / "agent")
    first.save_replay_buffer(tmp_path / "buffer")
    return tmp_path, global_streams(), first.action_space.np_random.bit_generator.state


def load(folder, env="Pendulum-v1", **settings):
    random.seed(5)  # as in another process
    np.random.seed(5)
    th.manual_seed(5)
    loaded = MBPO.load(folder / "agent", env=DummyVecEnv([lambda: gym.make(env)]), device="cpu", **settings)
    loaded.load_replay_buffer(folder / "buffer")
    return loaded


def test_the_first_learn_that_continues_puts_streams_back(saved):
    folder, streams, actions = saved
    loaded = load(folder)
    loaded.learn(0, reset_num_timesteps=False)
    assert global_streams() == streams
    assert loaded.action_space.np_random.bit_generator.state == actions


def test_whoever_only_predicts_is_not_surprised(saved):
    """``load`` leaves the global streams alone: SB3's seeds them, and the numbers of the first steps are drawn once more."""
    folder, streams, actions = saved
    loaded = load(folder)
    after = global_streams()
    random.seed(5)
    np.random.seed(5)
    th.manual_seed(5)
    assert global_streams() == after != streams
    assert loaded.action_space.np_random.bit_generator.state == actions
    loaded.predict(np.zeros(3, np.float32), deterministic=True)
    assert global_streams() == after


def test_a_run_that_starts_anew_draws_anew(saved):
    folder, streams, _ = saved
    loaded = load(folder)
    loaded.learn(0)
    assert global_streams() != streams
    loaded.learn(0, reset_num_timesteps=False)  # the saved streams are gone
    assert global_streams() != streams


def test_the_second_learn_goes_on_where_the_first_has_ended(saved):
    folder, streams, _ = saved
    loaded = load(folder)
    loaded.learn(0, reset_num_timesteps=False)
    np.random.random()
    loaded.learn(0, reset_num_timesteps=False)
    assert global_streams() != streams


def test_with_the_model_off_load_is_sb3s(tmp_path):
    first = agent(real_ratio=1.0).learn(40)
    first.save(tmp_path / "agent")
    first.save_replay_buffer(tmp_path / "buffer")
    loaded = load(tmp_path)
    before = global_streams()
    loaded.learn(0, reset_num_timesteps=False)
    assert global_streams() == before


def test_start_states_of_a_resumed_run_are_not_those_of_the_first_one(tmp_path):
    """SB3's ``load`` seeds the environments again, with the seed of the run."""

    class Starts(gym.Wrapper):
        def __init__(self, env, seen):
            super().__init__(env)
            self.seen = seen

        def reset(self, **kwargs):
            obs, info = self.env.reset(**kwargs)
            self.seen.append(obs.tolist())
            return obs, info

    def starts(run):
        seen = []
        run(DummyVecEnv([lambda: Starts(gym.make("Pendulum-v1", max_episode_steps=10), seen)]))
        return seen

    def first(env):
        agent(env).learn(40).save(tmp_path / "agent")

    def second(env):
        MBPO.load(tmp_path / "agent", env=env, device="cpu").learn(40, reset_num_timesteps=False)

    before = starts(first)
    with pytest.warns(UserWarning, match="The replay buffer is empty"):
        after = starts(second)
    assert len(before) == len(after) == 5
    assert not [start for start in after if start in before]


def test_the_memory_of_an_episode_continues_where_the_environment_is_kept(tmp_path):
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    first = PETS("MlpPolicy", env, **{**MODEL, **PLANNED}).learn(60)
    first.save(tmp_path / "agent")
    kept = PETS.load(tmp_path / "agent", env=env, force_reset=False, device="cpu")
    assert kept.acting.is_first.tolist() == first.acting.is_first.tolist() == [False]
    assert th.equal(kept.acting.state["action"], first.acting.state["action"])
    others = DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2)
    two = PETS.load(tmp_path / "agent", env=others, force_reset=False, device="cpu")
    assert two.acting.state is None
    assert two.acting.is_first.tolist() == [True, True]


def test_an_agent_loads_whatever_was_drawn_in_this_process(saved):
    """After random.gauss() Python's stream keeps a second number, and the saved one has none: the file was called damaged."""
    folder, streams, _ = saved
    random.gauss(0.0, 1.0)
    assert random.getstate()[2] is not None
    MBPO.load(folder / "agent", device="cpu")
    loaded = load(folder)
    loaded.learn(0, reset_num_timesteps=False)
    assert global_streams() == streams
