"""Collecting in another process: snapshots of the networks go there, segments of steps come back."""

import multiprocessing

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl.algorithms.muzero.replay import POLICY, VERSION
from tests.algorithms.muzero.agents import Count, small


def collected(snapshot, seed, steps):
    """Collect with the networks of a snapshot, in whatever process this is."""
    th.set_num_threads(1)
    actor = small(DummyVecEnv([Count] * 2), gradient_steps=0, seed=seed)
    actor.load_snapshot(snapshot)
    actor.learn(steps)
    return actor.newest(steps // 2)


@pytest.fixture(scope="module")
def learner():
    return small(DummyVecEnv([Count] * 2), learning_rate=1e-2).learn(60)


def test_a_second_process_collects_the_same_segments(learner):
    snapshot = learner.snapshot()
    here = collected(snapshot, 7, 24)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(collected, (snapshot, 7, 24))
    assert here.reward.shape == (12, 2)
    for name, own in here._asdict().items():
        parts = own if isinstance(own, dict) else {name: own}
        others = getattr(there, name) if isinstance(own, dict) else {name: getattr(there, name)}
        assert parts.keys() == others.keys()
        assert all(np.array_equal(part, others[key]) for key, part in parts.items()), name
    assert (there.beside[VERSION] == learner._n_updates).all()
    other = collected(small(DummyVecEnv([Count] * 2)).snapshot(), 7, 24)
    assert not np.array_equal(here.beside[POLICY], other.beside[POLICY]), "the networks of the snapshot have searched"


def test_a_learner_trains_on_the_steps_of_an_actor():
    """Rows, results and priorities are those of an agent that has collected them itself."""
    alone = small(DummyVecEnv([Count] * 2), gradient_steps=0, seed=3).learn(40)
    learner = small(DummyVecEnv([Count] * 2), seed=3)
    whole = alone.newest(20)
    for rows in (slice(0, 10), slice(10, 20)):  # the second part follows from the first, in the middle of an episode
        segment = type(whole)(*({k: v[rows] for k, v in x.items()} if isinstance(x, dict) else x[rows] for x in whole))
        assert learner.add(segment) == 20
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(alone.replay_buffer, name)[:20], getattr(learner.replay_buffer, name)[:20]), name
    for name, values in alone.real.side.arrays.items():
        assert np.array_equal(values[:20], learner.real.side.arrays[name][:20]), name
    assert np.array_equal(alone.replay.priorities.values[:20], learner.replay.priorities.values[:20])
    before = learner.snapshot()
    learner.train(gradient_steps=5, batch_size=8)
    assert learner._n_updates == 5
    assert any(not th.equal(value, before.world_model[name]) for name, value in learner.snapshot().world_model.items())
    assert learner.num_timesteps == 40


def test_a_segment_from_elsewhere_does_not_continue_an_episode():
    actor = small(DummyVecEnv([Count] * 2), gradient_steps=0).learn(12)  # six steps: in the middle of the second episode
    learner = small(DummyVecEnv([Count] * 2))
    learner.add(actor.newest(6))
    assert learner.replay_buffer.dones[5].tolist() == [0.0, 0.0]
    learner.add(actor.newest(6))  # begins with step 0 again
    assert learner.replay_buffer.dones[5].tolist() == [1.0, 1.0]
    assert learner.replay_buffer.timeouts[5].tolist() == [1.0, 1.0]


def test_what_does_not_fit_is_refused(learner):
    alone = small(DummyVecEnv([Count])).learn(12)
    with pytest.raises(ValueError, match="The segment is of 1 environments, and the replay buffer of 2"):
        learner.add(alone.newest(4))
    with pytest.raises(ValueError, match=r"newest\(99\): the replay buffer holds 30 steps of each environment"):
        learner.newest(99)
    whole = small(DummyVecEnv([Count] * 2)).learn(12).newest(4)
    less = whole._replace(beside={name: values for name, values in whole.beside.items() if name != "search.value"})
    with pytest.raises(ValueError, match=r"Only one of the segment and the replay buffer has \['search.value'\]"):
        learner.add(less)


class Wide(Count):
    """The same with observations of two numbers."""

    observation_space = spaces.Box(0, 99, (2,))

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return np.repeat(obs, 2), info

    def step(self, action):
        obs, *rest = super().step(action)
        return np.repeat(obs, 2), *rest


def test_what_comes_from_another_agent_changes_nothing(learner):
    """A snapshot of other networks had overwritten a part of them before it was refused."""
    other = small(DummyVecEnv([Wide] * 2)).learn(12)
    before = {name: value.clone() for name, value in learner.latent_model.state_dict().items()}
    with pytest.raises(ValueError, match=r"The snapshot is of other networks: \d+ of \d+ tensors differ"):
        learner.load_snapshot(other.snapshot())
    assert all(th.equal(value, before[name]) for name, value in learner.latent_model.state_dict().items())
    with pytest.raises(ValueError, match="The segment is of another agent: observations are"):
        learner.add(other.newest(4))
    with pytest.raises(TypeError, match=r"load_snapshot takes the result of snapshot\(\), not NoneType"):
        learner.load_snapshot(None)
    with pytest.raises(TypeError, match=r"add\(\) takes the result of newest\(\), not NoneType"):
        learner.add(None)
