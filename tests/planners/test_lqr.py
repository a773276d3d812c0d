"""Expansions and the backward pass of iLQR against closed forms."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl.contracts import MissingCapability, Prediction
from sb3_mbrl.planners.lqr import (
    Expansion,
    expand,
    expand_value,
    flat_step,
    flat_value,
    flatten,
    negative_definite,
    negative_semidefinite,
    simulate,
    solve,
    unflatten,
)
from sb3_mbrl.planners.rollout import evaluate
from tests.planners.problems import HORIZON, STARTS, Line, LinearQuadratic

STATE = {"x": th.tensor([[1.0, 2.0], [3.0, 4.0]]), "deep": (th.tensor([5.0, 6.0]), th.arange(8.0).view(2, 2, 2))}


# ---- flat states


def test_states_are_flattened_and_come_back():
    flat = flatten(STATE)
    assert flat.tolist() == [[1, 2, 5, 0, 1, 2, 3], [3, 4, 6, 4, 5, 6, 7]]
    back = unflatten(flat, STATE)
    assert th.equal(back["x"], STATE["x"])
    assert [th.equal(a, b) for a, b in zip(back["deep"], STATE["deep"], strict=True)] == [True, True]


def test_states_may_come_back_with_other_rows():
    """Derivatives are computed for single rows of all time steps."""
    assert unflatten(th.zeros(5, 7), STATE)["deep"][1].shape == (5, 2, 2)


def test_integers_in_a_state_have_no_derivative():
    with pytest.raises(MissingCapability, match=r"leaves that are not floats.*give it the model itself, not Particles"):
        flatten({"x": th.zeros(2, 1), "member": th.zeros(2, dtype=th.long)})


# ---- simulation


def test_simulation_and_evaluation_agree():
    model = LinearQuadratic()
    state = model.initial(STARTS)
    actions = 0.5 * th.randn(3, HORIZON, 1, generator=th.Generator().manual_seed(0))
    value = lambda s: s["obs"].sum(1)  # noqa: E731
    step, flat = flat_step(model, state), flat_value(value, state)
    states, totals = simulate(step, flatten(state), lambda t, x: actions[:, t], HORIZON, 0.9, flat)
    expected = evaluate(model, state, actions[:, None], gamma=0.9, value=value).returns[:, 0]
    th.testing.assert_close(totals, expected)
    assert states.shape == (3, HORIZON + 1, 2)
    th.testing.assert_close(states[:, 0], STARTS)
    assert flat_value(None, state) is None


def test_a_simulation_that_diverges_is_never_the_best():
    model = Line(break_at=2.5)
    step = flat_step(model, model.initial(th.zeros(2, 1)))
    _, totals = simulate(step, th.tensor([[0.0], [-5.0]]), lambda t, x: th.ones(2, 1), 4, 1.0)
    assert totals.tolist() == [-float("inf"), -4 - 3 - 2 - 1]


# ---- expansions


def test_the_expansion_of_a_linear_quadratic_problem_is_its_matrices():
    """The reward is that of the next state: r = -(x'Qx' + u'Ru) with x' = Ax + Bu."""
    model, generator = LinearQuadratic(), th.Generator().manual_seed(0)
    states, actions = th.randn(3, 4, 2, generator=generator), th.randn(3, 4, 1, generator=generator)
    expansion = expand(flat_step(model, model.initial(STARTS)), states, actions)
    a, b, q, r = model.A, model.B, model.Q, model.R
    following = states @ a.T + actions @ b.T
    expected = Expansion(
        f_x=a.expand(3, 4, 2, 2),
        f_u=b.expand(3, 4, 2, 1),
        r_x=-2 * following @ q @ a,
        r_u=-2 * (following @ q @ b + actions @ r),
        r_xx=(-2 * a.T @ q @ a).expand(3, 4, 2, 2),
        r_ux=(-2 * b.T @ q @ a).expand(3, 4, 1, 2),
        r_uu=(-2 * (b.T @ q @ b + r)).expand(3, 4, 1, 1),
    )
    for name, got, wanted in zip(Expansion._fields, expansion, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=name)


def test_a_reward_that_bends_upwards_is_expanded_with_the_nearest_concave_one():
    """r = x'^2 - u^2 with x' = x + u, so r_uu is 0; the Hessian [[2, 2], [2, 0]] has one negative eigenvalue, 1 - sqrt(5)."""

    def step(x, u):
        return x + u, (x + u).square().sum(1) - u.square().sum(1)

    expansion = expand(step, th.ones(1, 1, 1), th.ones(1, 1, 1))
    blocks = th.cat([th.cat([expansion.r_xx, expansion.r_ux.mT], 3), th.cat([expansion.r_ux, expansion.r_uu], 3)], 2)
    values = th.linalg.eigvalsh(blocks)[0, 0]
    assert values.tolist() == pytest.approx([1 - 5**0.5, 0.0], abs=1e-5)
    assert expansion.r_x.item() == pytest.approx(4.0), "the gradient is the reward's own"


def test_a_value_function_is_expanded_to_second_order():
    """V = -x'Px + b'x."""
    p, b = th.tensor([[2.0, 0.5], [0.5, 1.0]]), th.tensor([1.0, -3.0])
    x = th.tensor([[1.0, 2.0], [0.0, -1.0]])
    gradient, hessian = expand_value(lambda s: -((s @ p) * s).sum(1) + s @ b, x)
    th.testing.assert_close(gradient, -2 * x @ p + b)
    th.testing.assert_close(hessian, (-2 * p).expand(2, 2, 2))
    assert expand_value(None, x) is None
    _, bent_up = expand_value(lambda s: (s**2).sum(1), x)
    th.testing.assert_close(bent_up, th.zeros(2, 2, 2))


def test_models_that_cannot_be_differentiated_are_refused_with_a_remedy():
    def by_item(x, u):
        return x + float(u.sum()), x.sum(1)

    def detached(x, u):
        return x + u.detach(), x.sum(1) + u.detach()[:, 0]

    ones = th.ones(1, 2, 1)
    with pytest.raises(MissingCapability, match=r"cannot be differentiated by torch\.func.*choose 'cem' or 'icem'"):
        expand(by_item, ones, ones)
    with pytest.raises(MissingCapability, match="not differentiable in the action: choose 'cem' or 'icem'"):
        expand(detached, ones, ones)
    with pytest.raises(MissingCapability, match="value function cannot be differentiated"):
        expand_value(lambda x: th.tensor([float(x.sum())]), ones[0])


def test_actions_without_effect_are_no_fault_of_the_model():
    expansion = expand(lambda x, u: (x, x.sum(1)), th.ones(1, 2, 1), th.ones(1, 2, 1))
    assert not expansion.f_u.any()
    assert not expansion.r_u.any()


# ---- definite matrices


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_nearest_negative_semidefinite_matrix(size):
    """Nearer than any other that is tried, and a matrix that is one already stays."""
    generator = th.Generator().manual_seed(size)
    matrix = th.randn(4, size, size, generator=generator)
    symmetric = 0.5 * (matrix + matrix.mT)
    nearest = negative_semidefinite(matrix)
    assert th.linalg.eigvalsh(nearest).max() < 1e-5
    distance = (nearest - symmetric).square().sum((1, 2))
    for _ in range(50):
        factor = th.randn(4, size, size, generator=generator)
        other = -factor @ factor.mT
        assert ((other - symmetric).square().sum((1, 2)) >= distance - 1e-5).all()
    th.testing.assert_close(negative_semidefinite(nearest), nearest, atol=1e-5, rtol=0)


def test_damping_is_taken_off_every_eigenvalue():
    matrix = th.tensor([[[-3.0, 0.0], [0.0, 2.0]]] * 2)
    damped = negative_definite(matrix, th.tensor([0.0, 0.5]))
    assert damped.tolist() == [[[-3.0, 0.0], [0.0, 0.0]], [[-3.5, 0.0], [0.0, -0.5]]]


# ---- the backward pass


def backward(damping=1e-6, gamma=1.0, last=None, horizon=HORIZON):
    model = LinearQuadratic()
    nothing = th.zeros(3, horizon, 1)
    step = flat_step(model, model.initial(STARTS))
    states, _ = simulate(step, STARTS, lambda t, x: nothing[:, t], horizon, gamma)
    return model, solve(expand(step, states[:, :-1], nothing), th.full((3,), damping), gamma, last)


def test_the_backward_pass_gives_riccatis_actions():
    """Around the plan that does nothing, u = k + K (x - x of that plan)."""
    model, (k, feedback) = backward()
    _, actions = model.riccati(STARTS, HORIZON)
    x, idle = STARTS, STARTS
    for t in range(HORIZON):
        u = k[:, t] + (feedback[:, t] @ (x - idle)[:, :, None]).squeeze(2)
        np.testing.assert_allclose(u, actions[:, t], atol=1e-4)
        x, idle = x @ model.A.T + u @ model.B.T, idle @ model.A.T


def test_a_value_of_the_last_state_stands_for_the_steps_after_it():
    """Two steps with the cost-to-go of six more are the first two of eight."""
    model = LinearQuadratic()
    _, (k, feedback) = backward()
    nothing = th.zeros(3, 2, 1)
    step = flat_step(model, model.initial(STARTS))
    states, _ = simulate(step, STARTS, lambda t, x: nothing[:, t], 2, 1.0)
    eye = th.eye(2)
    own, both = model.riccati(eye, HORIZON - 2)[0], model.riccati(th.ones(1, 2), HORIZON - 2)[0]
    p = th.diag(-own)
    p[0, 1] = p[1, 0] = 0.5 * (own.sum() - both[0])
    last = expand_value(lambda x: -((x @ p) * x).sum(1), states[:, -1])
    short, short_feedback = solve(expand(step, states[:, :-1], nothing), th.full((3,), 1e-6), 1.0, last)
    np.testing.assert_allclose(short, k[:, :2], atol=1e-4)
    np.testing.assert_allclose(short_feedback, feedback[:, :2], atol=1e-4)


def test_damping_makes_steps_shorter():
    sizes = [backward(damping)[1][0].abs().sum() for damping in (1e-6, 1.0, 100.0)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_a_discount_of_nothing_looks_at_one_step_only():
    """The last step of a plan is that of a plan of one step; with gamma 0, so is every other."""
    _, (k, _) = backward(gamma=0.0, horizon=1)
    _, (longer, _) = backward(gamma=0.0, horizon=3)
    th.testing.assert_close(longer[:, 0], k[:, 0])


def test_rows_that_overflow_take_no_step_and_disturb_no_other():
    class Exploding(LinearQuadratic):
        def step(self, state, action, **kwargs):
            prediction = super().step(state, action, **kwargs)
            far = (state["obs"].abs().sum(1) > 50).float()
            grown = {"obs": prediction.state["obs"] * (1 + 1e25 * far[:, None])}
            return Prediction(grown, prediction.reward * (1 + 1e25 * far), prediction.terminated)

    model, starts = Exploding(), th.tensor([[0.5, 0.0], [100.0, 0.0]])
    step = flat_step(model, model.initial(starts))
    nothing = th.zeros(2, 3, 1)
    states = starts[:, None].expand(2, 3, 2)
    k, feedback = solve(expand(step, states, nothing), th.full((2,), 1e-6), 1.0)
    assert k.isfinite().all()
    assert feedback.isfinite().all()
    alone, _ = solve(expand(step, states[:1], nothing[:1]), th.full((1,), 1e-6), 1.0)
    th.testing.assert_close(k[:1], alone)
    assert k[0].abs().sum() > 0
