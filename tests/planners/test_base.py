"""Every planner of sequences: the contract, problems with known solutions, divergence, and refusals."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace
from sb3_mbrl.planners import CEM, ICEM, ILQR, MPPI, GradientPlanner, RandomShooting
from sb3_mbrl.planners.base import check_action_mask
from sb3_mbrl.testing import parametrize_with_checks
from tests.planners.problems import HORIZON, ONE, STARTS, Line, LinearQuadratic, plan

SAMPLING = [RandomShooting, CEM, ICEM, MPPI]
EVERY = [*SAMPLING, GradientPlanner, ILQR]


@parametrize_with_checks(EVERY)
def test_the_contract(part, check):
    check(part)


# ---------------------------------------------------------------------------------------------------- the linear-quadratic one


@pytest.mark.parametrize(
    ("planner", "tolerance"),
    [
        (CEM(ONE, horizon=HORIZON, population=400, iterations=15), 5e-3),
        (ICEM(ONE, horizon=HORIZON, population=200, iterations=20, colour=0.5), 2e-2),
        (MPPI(ONE, horizon=HORIZON, population=1000, iterations=20, sigma=0.1, temperature=0.1), 1e-2),
        (GradientPlanner(ONE, horizon=HORIZON, iterations=200, learning_rate=0.03), 1e-3),
        (ILQR(ONE, horizon=HORIZON, iterations=5), 1e-5),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float) else "",
)
def test_the_riccati_solution(planner, tolerance):
    """The regret is relative to that of doing nothing."""
    model = LinearQuadratic()
    best, actions = model.riccati(STARTS, HORIZON)
    assert actions.abs().max() < 1  # the bounds are not touched
    planned = plan(planner, model, STARTS).sequence

    def total_reward(sequence):
        state, total = model.initial(STARTS), th.zeros(3)
        for t in range(HORIZON):
            prediction = model.step(state, sequence[:, t])
            state, total = prediction.state, total + prediction.reward
        return total

    assert total_reward(actions) == pytest.approx(best, rel=1e-5)
    regret = (best - total_reward(planned)) / (best - total_reward(th.zeros_like(planned)))
    assert (regret >= -1e-4).all()
    assert regret.max() < tolerance


# ------------------------------------------------------------------------------------------------------------ what is counted


@pytest.mark.parametrize("cls", SAMPLING)
def test_a_sequence_that_diverges_never_wins(cls):
    """mbrl-lib replaces NaN by -1e-10, so that with negative rewards such a sequence is the best one."""
    planner = cls(ONE, horizon=4)
    planned = plan(planner, Line(break_at=-2.5), [[-4.0]])
    sound = th.full((1,), -4.0) + planned.sequence[0, :, 0].cumsum(0)
    assert (sound <= -2.5).all()
    assert 0 < planned.info["diverged"] < 1


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("scale", [2.5e37, 3e38, -2.5e37])
def test_sums_that_overflow_neither_win_nor_spoil_the_next_plan(cls, scale):
    """Regression: with finite rewards whose sum overflows, such a sequence won, and MPPI returned NaN."""

    class Huge(Line):
        def step(self, state, action, **kwargs):
            prediction = super().step(state, action, **kwargs)
            return prediction._replace(reward=scale * (1.0 + action[:, 0].clamp(min=0.0)))

    planner = cls(ONE, horizon=6)
    planned = plan(planner, Huge(), [[0.0]])
    assert planned.action.isfinite().all()
    assert not (planned.value == th.inf).any()
    assert plan(planner, Line(), [[0.0]], carry=planned.carry, first=False).action.isfinite().all()


@pytest.mark.parametrize("cls", SAMPLING)
def test_there_is_an_action_where_everything_diverges(cls):
    planned = plan(cls(ONE, horizon=3), Line(break_at=-10.0), [[0.0]])
    assert planned.info["diverged"] == 1
    assert planned.action.isfinite().all()
    assert planned.action.abs().max() <= 1


@pytest.mark.parametrize("cls", [CEM, ICEM, MPPI])
def test_rewards_after_a_termination_do_not_count(cls):
    """Rewards are places, so the point would run away; beyond 1 the episode is over, and staying within pays more."""
    planned = plan(cls(ONE, horizon=6), Line(edge=1.0), [[0.5]])
    place = 0.5 + planned.sequence[0, :, 0].cumsum(0)
    assert place[:-1].max() <= 1.0
    assert planned.action[0, 0] <= 0.5


def test_divergence_after_a_termination_does_no_harm():
    """The first step ends the episode for certain; that later ones pass 6, where numbers break, does no harm."""
    assert plan(CEM(ONE, horizon=3), Line(break_at=6.0), [[5.0]]).info["diverged"] > 0
    assert plan(CEM(ONE, horizon=3), Line(edge=0.0, break_at=6.0), [[5.0]]).info["diverged"] == 0.0


@pytest.mark.parametrize("cls", SAMPLING)
def test_a_terminal_value_decides(cls):
    """Rewards are small, the value of the last state is minus its distance from -0.6."""
    model = Line()
    value = lambda state: -100 * (state["obs"][:, 0] + 0.6).square()  # noqa: E731
    planned = plan(cls(ONE, horizon=2), model, [[0.0]], value=value)
    assert float(planned.sequence.sum()) == pytest.approx(-0.6, abs=0.15)


@pytest.mark.parametrize("cls", [CEM, ICEM, MPPI, GradientPlanner, RandomShooting])
def test_a_prior_adds_sequences(cls):
    """Two random sequences are poor; the prior's are better by far."""
    planner = (
        cls(ONE, horizon=10, population=2, std=0.01) if cls is not MPPI else cls(ONE, horizon=10, population=2, sigma=0.01)
    )
    alone = plan(planner, Line(), [[0.0]])
    advised = plan(planner, Line(), [[0.0]], prior=lambda state, generator: th.ones(len(state["obs"]), 1))
    assert float(advised.sequence.mean()) > max(0.5, float(alone.sequence.mean()))


def test_gamma_discounts():
    """Giving up 0.5 now for 0.1 in each of the next steps pays without discounting only."""
    plans = {gamma: plan(CEM(ONE, horizon=12, gamma=gamma), LinearQuadratic(), [[0.4, 0.0]]) for gamma in (1.0, 0.3)}
    assert plans[1.0].action.abs() > 3 * plans[0.3].action.abs()


# ------------------------------------------------------------------------------------------------------- carry, noise, masks


@pytest.mark.parametrize("cls", [CEM, ICEM, MPPI, GradientPlanner, ILQR])
def test_the_carry_is_shifted_by_one_step(cls):
    """A warm start needs fewer sequences than a cold one."""
    model = LinearQuadratic()
    small = {"iterations": 1, "population": 20} if cls not in (GradientPlanner, ILQR) else {"iterations": 1}
    if cls is MPPI:
        small["sigma"] = 0.1
    rich = cls(ONE, horizon=HORIZON, **({} if cls is ILQR else {"population": 500}))
    first = plan(rich, model, STARTS)
    state = model.step(model.initial(STARTS), first.action).state["obs"]
    poor = cls(ONE, horizon=HORIZON, **small)
    warm = plan(poor, model, state, first.carry, first=False).sequence
    tail = first.sequence[:, 1:4]
    cold = plan(poor, model, state).sequence
    if cls is not ILQR:  # which needs one iteration either way
        assert (warm[:, :3] - tail).abs().mean() < (cold[:, :3] - tail).abs().mean()
    assert (warm[:, :3] - tail).abs().mean() < 0.25


@pytest.mark.parametrize("cls", SAMPLING)
@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3, start=5), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)],
    ids=["discrete", "multi", "bits"],
)
def test_discrete_actions(cls, space):
    """In ``Line`` the reward grows with the first number of the action: the largest one is best."""

    class Shifted(Line):
        def step(self, state, action, **kwargs):
            return super().step(
                state, action - int(getattr(space, "start", 0) if isinstance(space, spaces.Discrete) else 0), **kwargs
            )

    planned = plan(cls(space, horizon=4), Shifted(space), [[0.0], [1.0]])
    largest = {spaces.Discrete: 7, spaces.MultiDiscrete: 2, spaces.MultiBinary: 1}[type(space)]
    assert not planned.action.is_floating_point()
    assert (planned.action[:, 0] == largest).all()
    assert all(
        space.contains(a if a.size > 1 or not isinstance(space, spaces.Discrete) else a[0]) for a in planned.action.numpy()
    )


@pytest.mark.parametrize("cls", SAMPLING)
def test_forbidden_actions_are_not_tried_first(cls):
    space = spaces.Discrete(3)
    mask = th.tensor([[True, True, False], [True, False, False]])
    planned = plan(cls(space, horizon=3), Line(space), [[0.0], [0.0]], action_mask=mask)
    assert planned.action.flatten().tolist() == [1, 0]
    assert (planned.sequence[:, 1:, 0] == 2).float().mean() > 0.5


# ----------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"horizon": 0}, "horizon=0: give a whole number from 1 on"),
        ({"population": 0}, "population=0: give a whole number from 1 on"),
        ({"horizon": 2.5}, "horizon=2.5: give a whole number"),
        ({"gamma": 1.5}, "gamma=1.5: give a number from 0 up to 1"),
        ({"gamma": float("nan")}, "gamma=nan"),
    ],
)
def test_impossible_numbers(cls, wrong, words):
    with pytest.raises(ValueError, match=words):
        cls(ONE, **wrong)


@pytest.mark.parametrize("cls", EVERY)
def test_infinite_bounds(cls):
    with pytest.raises(UnsupportedSpace, match=r"no finite bounds.*RescaleAction"):
        cls(spaces.Box(-np.inf, np.inf, (2,)))


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("bounds", [([-1.0, 2.0], [1.0, 2.0]), ([-3e38, -1.0], [3e38, 1.0])])
def test_bounds_that_cannot_be_scaled(cls, bounds):
    """Regression: NaN was sent to the environment."""
    low, high = (np.array(bound, np.float32) for bound in bounds)
    with pytest.raises(UnsupportedSpace, match=r"cannot be scaled to \[-1, 1\]"):
        cls(spaces.Box(low, high))


@pytest.mark.parametrize("cls", EVERY)
def test_there_is_an_action_where_none_changes_anything(cls):
    """A model of the first few rows may predict this. Regression: iLQR raised, which ended the training."""

    class Still(Line):
        def step(self, state, action, **kwargs):
            return super().step(state, 0.0 * action, **kwargs)

    planned = plan(cls(ONE, horizon=3), Still(), [[0.3]])
    assert planned.action.isfinite().all()


def test_masks_are_for_discrete_actions():
    with pytest.raises(MissingCapability, match="action masks are for Discrete actions"):
        plan(CEM(ONE), Line(), [[0.0]], action_mask=th.ones(1, 2))
    with pytest.raises(ValueError, match=r"shape \(1, 2\): give \(1, 3\), with an allowed action"):
        plan(CEM(spaces.Discrete(3)), Line(spaces.Discrete(3)), [[0.0]], action_mask=th.ones(1, 2))
    with pytest.raises(ValueError, match="with an allowed action in every row"):
        plan(CEM(spaces.Discrete(3)), Line(spaces.Discrete(3)), [[0.0]], action_mask=th.zeros(1, 3))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.array([[1, 0], [0, 0]]), "allows no action in row 1"),
        (np.ones((2, 3)), r"has the shape \(2, 3\): give \(2, 2\)"),
        (np.array([[np.nan, 0], [1, 1]]), "holds NaN or infinity"),
        (None, "is None: give true where an action is allowed"),
        (np.array([["a", "b"]] * 2), "is array.* give true where an action is allowed"),
    ],
)
def test_masks_that_say_nothing(mask, words):
    """NaN counted as allowed, and without an allowed action the message asked for the shape that was given."""
    with pytest.raises(ValueError, match=rf"(?s)action_mask {words}"):
        check_action_mask(mask, 2, spaces.Discrete(2))
