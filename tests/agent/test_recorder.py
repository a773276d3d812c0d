"""The log of an agent."""

from tests.helpers.agents import learned


def test_phases_are_timed():
    agent = learned(fit_kwargs={"max_batches": 200}).learn(200)
    assert all(seconds > 0 for seconds in agent.phase_seconds.values())
