"""Agents that expect what happens: their world model is exact."""

import gymnasium as gym
import pytest

from tests.helpers.agents import tiny


@pytest.fixture(scope="module")
def exact():
    """An agent whose world model is Pendulum's exact twin."""
    return tiny().learn(60)


@pytest.fixture
def pendulum():
    with gym.make("Pendulum-v1") as env:
        yield env
