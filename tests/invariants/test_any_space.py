"""
Any observation and action space either trains, and all that comes out is a member of its space, or is refused at construction
by an error that names the space (and the key).
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.random_spaces import CLASSES, construct, likely_pairs, space_pairs, train

QUIET = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
EACH_CLASS = pytest.mark.parametrize("name", CLASSES)


@EACH_CLASS
def test_any_spaces_are_constructed_or_refused(name):
    @settings(max_examples=300, **QUIET)
    @given(spaces=space_pairs(name))
    def run(spaces):
        construct(name, *spaces)

    run()


@EACH_CLASS
def test_any_spaces_train_or_are_refused(name):
    accepted(name, 20)


@pytest.mark.slow
@EACH_CLASS
def test_many_spaces_train_or_are_refused(name):
    accepted(name, 200)


def accepted(name: str, trainings: int) -> None:
    """Train in as many pairs of spaces that a class takes."""

    @settings(max_examples=trainings, **QUIET)
    @given(data=st.data())
    def run(data):
        agent = None
        while agent is None:
            agent = construct(name, *data.draw(likely_pairs(name)))
        train(agent)

    run()
