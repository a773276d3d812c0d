"""The same seed is the same run."""

import torch as th

from tests.helpers.agents import learned, same


def test_same_seed_same_run():
    one, other = learned().learn(300), learned().learn(300)
    assert same(one, other)
    for a, b in zip(one.world_model.parameters(), other.world_model.parameters(), strict=True):
        assert th.equal(a, b)
    assert not same(one, learned(seed=1).learn(300))
