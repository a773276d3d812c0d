"""LaProp with adaptive gradient clipping against a transcription of its formulas."""

import copy

import numpy as np
import pytest
import torch as th

from sb3_mbrl.optim import LaProp


def transcribed(w, gradients, lr, beta1, beta2, eps, clip, min_norm, warmup):
    """Make the step of one tensor, in float64."""
    v, m = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if clip:
            g = g * min(1.0, clip * max(np.linalg.norm(w), min_norm) / max(np.linalg.norm(g), 1e-300))
        v = beta2 * v + (1 - beta2) * g**2
        m = beta1 * m + (1 - beta1) * g / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - lr * (min(1.0, t / warmup) if warmup else 1.0) * m / (1 - beta1**t)
    return w


@pytest.mark.parametrize("settings", [{}, {"clip": 0.0}, {"warmup": 0}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_steps_by_the_formula(settings):
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (3,), (), (2, 2, 2)]
    start = [0.1 * rng.normal(size=shape) for shape in shapes]
    start[1] = np.zeros(3)  # a bias: its norm counts as min_norm
    gradients = [[scale * rng.normal(size=shape) for scale in (5.0, 0.01, 0.0, 1.0)] for shape in shapes]
    given = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-20, "clip": 0.3, "min_norm": 1e-3, "warmup": 3, **settings}
    parameters = [th.nn.Parameter(th.tensor(w)) for w in start]
    optimizer = LaProp(parameters, **given)
    for t in range(4):
        for parameter, mine in zip(parameters, gradients, strict=True):
            parameter.grad = th.tensor(mine[t])
        optimizer.step()
    beta1, beta2 = given.pop("betas")
    for parameter, w, mine in zip(parameters, start, gradients, strict=True):
        np.testing.assert_allclose(
            parameter.detach(), transcribed(w, mine, beta1=beta1, beta2=beta2, **given), rtol=1e-6, atol=1e-12
        )


def test_clipping_is_per_tensor_and_relative():
    """A gradient ten times too long for a tensor of norm 1 is cut to 0.3; a short one is left alone."""
    long, short = th.nn.Parameter(th.tensor([1.0, 0.0])), th.nn.Parameter(th.tensor([1.0, 0.0]))
    optimizer = LaProp([long, short], lr=0.0, warmup=0)
    long.grad, short.grad = th.tensor([3.0, 0.0]), th.tensor([0.0, 0.2])
    optimizer.step()
    assert optimizer.state[long]["square"].tolist() == pytest.approx([0.001 * 0.3**2, 0.0])
    assert optimizer.state[short]["square"].tolist() == pytest.approx([0.0, 0.001 * 0.2**2])


def test_going_on_from_its_state_is_going_on():
    th.manual_seed(0)
    one = th.nn.Linear(3, 2)
    other = copy.deepcopy(one)
    optimizers = [LaProp(one.parameters(), lr=0.01), LaProp(other.parameters(), lr=0.01)]

    def train(model, optimizer, seed):
        optimizer.zero_grad()
        model(th.randn((5, 3), generator=th.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()

    for model, optimizer in zip((one, other), optimizers, strict=True):
        train(model, optimizer, 0)
    resumed = LaProp(other.parameters(), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    train(one, optimizers[0], 1)
    train(other, resumed, 1)
    assert th.equal(one.weight, other.weight)


def test_a_parameter_without_a_gradient_stays():
    used, idle = th.nn.Parameter(th.ones(2)), th.nn.Parameter(th.ones(2))
    used.grad = th.ones(2)
    LaProp([used, idle], lr=0.1, warmup=0).step()
    assert idle.tolist() == [1.0, 1.0]
    assert used.tolist() != [1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"eps": 0}, {"clip": -0.1}, {"betas": (1.0, 0.9)}, {"warmup": -1}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="LaProp"):
        LaProp([th.nn.Parameter(th.ones(1))], **wrong)
