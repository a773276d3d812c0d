"""``Dyna``: DQN with a model."""

import torch as th

from sb3_mbrl import Dyna


def test_it_learns_from_returns_of_several_steps():
    """A batch has the real rows' discount and the imagined ones'."""
    agent = Dyna(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=100,
        world_model="cartpole",
        imagination_kwargs={"horizon": 5, "n_steps": 5, "starts_per_step": 4, "freq": 20, "max_age": 100},
        seed=0,
        device="cpu",
    ).learn(200)
    rows = agent.imagined.draw(500, th.Generator().manual_seed(0))
    powers = {round(agent.gamma**n, 4) for n in range(1, 6)}
    assert {round(float(value), 4) for value in rows["discount"]} - {0.0} == powers
    ended = rows["discount"] == 0
    sums = {round(sum(0.99**k for k in range(n)), 3) for n in range(1, 6)}
    assert {round(float(value), 3) for value in rows["reward"][ended]} <= sums
    assert bool(ended.any())
