"""A saved agent."""

import pytest

from tests.helpers.saved_agents import quick


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Train an agent for 50 steps, save it with its replay buffer, and return it with the folder."""
    folder = tmp_path_factory.mktemp("agent")
    agent = quick(reward_fn="auto").learn(50)
    assert agent.trainer.trusted
    agent.save(folder / "agent")
    agent.save_replay_buffer(folder / "buffer")
    return agent, folder


@pytest.fixture
def agent(saved):
    return saved[0]


@pytest.fixture
def path(saved):
    return saved[1] / "agent"
