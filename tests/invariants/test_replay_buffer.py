"""The base class's replay buffer is the same object before and after ``train``, also when ``train`` raises."""

import pytest
from stable_baselines3 import SAC

from tests.helpers.agents import tiny


def test_the_replay_buffer_stays_the_same_object():
    agent = tiny()
    before = agent.replay_buffer
    agent.learn(200)
    assert agent.replay_buffer is before
    assert agent.imagined is not None
    assert len(agent.imagined) > 0


def test_the_replay_buffer_comes_back_when_train_raises(monkeypatch):
    agent = tiny()
    agent.learn(100)
    before = agent.replay_buffer

    def fail(self, gradient_steps, batch_size):
        assert self.replay_buffer is not before
        raise RuntimeError("out of luck")

    monkeypatch.setattr(SAC, "train", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        agent.learn(10, reset_num_timesteps=False)
    assert agent.replay_buffer is before
