"""A saved agent."""

import pytest

from tests.helpers.saved_agents import quick


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An agent after 50 steps, and where it and its replay buffer were saved."""
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
