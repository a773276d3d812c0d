"""Random shooting: the best of uniform sequences, and nothing else."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.planners import RandomShooting
from tests.planners.problems import ONE, Line, plan


class Recording(Line):
    """A line that notes the actions that are tried."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tried = []

    def step(self, state, action, **kwargs):
        self.tried.append(action)
        return super().step(state, action, **kwargs)


def test_the_best_of_all_sequences_that_were_tried_is_taken():
    """Rewards are places, so the return from 0 is 3 a_1 + 2 a_2 + a_3."""
    model = Recording()
    best = plan(RandomShooting(ONE, horizon=3, population=50), model, [[0.0]])
    sequences = th.stack(model.tried[:3], 1)[:, :, 0]
    assert sequences.shape == (50, 3)
    returns = sequences @ th.tensor([3.0, 2.0, 1.0])
    assert float(best.value) == pytest.approx(float(returns.max()), rel=1e-5)
    th.testing.assert_close(best.sequence[0, :, 0], sequences[returns.argmax()])
    assert th.equal(best.action, best.sequence[:, 0])


def test_sequences_are_uniform_over_the_action_space():
    model = Recording()
    plan(RandomShooting(ONE, horizon=2, population=4_000), model, [[0.0]])
    drawn = model.tried[0].flatten()
    assert drawn.abs().max() <= 1
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(drawn.var()) == pytest.approx(1 / 3, abs=0.02)
    space = spaces.Discrete(3, start=5)
    model = Recording(space)
    plan(RandomShooting(space, horizon=1, population=3_000), model, [[0.0]])
    counts = (model.tried[0].flatten() - 5).bincount(minlength=3)
    assert len(counts) == 3
    assert (counts - 1_000).abs().max() < 100


def test_more_sequences_plan_better_and_nothing_is_carried_over():
    values = {
        n: float(plan(RandomShooting(ONE, horizon=5, population=n), Line(), [[0.0]] * 20).value.mean()) for n in (2, 20, 500)
    }
    assert values[2] < values[20] < values[500]
    planned = plan(RandomShooting(ONE, horizon=2, population=4), Line(), [[0.0]])
    assert planned.carry == {}
    assert th.equal(plan(RandomShooting(ONE, horizon=2, population=4), Line(), [[0.0]], planned.carry).action, planned.action)


def test_a_priors_sequences_are_tried_too():
    """All ones are better than any random sequence."""
    planner = RandomShooting(ONE, horizon=3, population=5, n_prior=2)
    planned = plan(planner, Line(), [[0.0]], prior=lambda state, generator: th.ones(len(state["obs"]), 1))
    assert planned.sequence.flatten().tolist() == [1.0, 1.0, 1.0]
    assert float(planned.value) == pytest.approx(6.0)
    assert planned.info["sequences"] == 7
