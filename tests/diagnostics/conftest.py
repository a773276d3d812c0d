"""Agents with an exact world model."""

import gymnasium as gym
import pytest

from tests.helpers.agents import tiny


@pytest.fixture(scope="module")
def exact():
    """Make an agent whose world model is Pendulum's exact twin."""
    return tiny().learn(60)


@pytest.fixture
def pendulum():
    with gym.make("Pendulum-v1") as env:
        yield env
