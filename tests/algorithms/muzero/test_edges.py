"""The actions that the edges of a search tree stand for."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.algorithms.muzero.edges import AllActions, SampledActions, edges_of
from sb3_mbrl.networks.actions import action_output


def generator():
    return th.Generator().manual_seed(0)


def test_edges_of_a_discrete_space_are_its_actions():
    edges = edges_of(spaces.Discrete(3, start=5), None, 20)
    assert isinstance(edges, AllActions)
    latent, policy = th.rand(2, 4), th.rand(2, 3)
    state, logits = edges.out_of(latent, policy, None)
    assert th.equal(logits, policy)
    assert edges.actions(state, th.tensor([0, 2])).tolist() == [[5], [7]]
    assert edges.stored(state) is None


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-3, 5, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)],
    ids=lambda space: type(space).__name__,
)
def test_sampled_actions_are_valid_and_found_again(space):
    output = action_output(space, unimix=0.0)
    edges = edges_of(space, output, 8)
    state, logits = edges.out_of(th.rand(5, 4), th.randn(5, output.size), generator())
    assert logits.shape == (5, 8)
    assert logits.isfinite().all()
    edge, bounded = th.tensor([0, 7, 3, 3, 1]), isinstance(space, spaces.Box)
    chosen = edges.actions(state, edge)
    stored = edges.stored(state)
    assert stored.shape[:2] == (5, 8)
    for row in range(5):
        assert np.array_equal(stored[row, edge[row]].clip(-1, 1) if bounded else stored[row, edge[row]], chosen[row].numpy())
    if bounded:
        assert np.abs(stored).max() > 1.0, "stored as drawn, for the density of the policy"
    else:
        assert all(space.contains(action.astype(space.dtype)) for action in stored.reshape(-1, stored.shape[-1]))


def test_priors_undo_the_way_of_sampling():
    """
    The sum over sampled actions of prior times Q, normalised, estimates the policy's mean of Q: the share of uniform draws
    does not move it (Sampled MuZero, theorem 1).
    """
    space = spaces.MultiDiscrete([2])
    output = action_output(space, unimix=0.0)
    policy = th.tensor([[0.0, math.log(9.0)]]).expand(2000, 2)  # probabilities 0.1 and 0.9
    edges = SampledActions(space, output, 64, uniform=0.5)
    state, logits = edges.out_of(th.rand(2000, 1), policy, generator())
    weights = logits.softmax(1)
    assert float((weights * state["action"][..., 0]).sum(1).mean()) == pytest.approx(0.9, abs=0.005)
    # The plain mean over the sampled actions is that of the mixture.
    assert float(state["action"].float().mean()) == pytest.approx(0.7, abs=0.01)


def test_without_uniform_draws_all_priors_are_equal():
    space = spaces.Box(-1, 1, (1,))
    output = action_output(space)
    _, logits = SampledActions(space, output, 6, uniform=0.0).out_of(th.rand(3, 2), th.randn(3, 2), generator())
    assert th.allclose(logits, th.zeros(3, 6), atol=1e-5)


@pytest.mark.parametrize("policy", [[0.0, 0.0], [0.8, 0.0], [-1.5, -3.0]])
def test_a_search_without_preference_leaves_the_policy_as_it_is(policy):
    """
    If all actions are worth the same, the expected gradient of the policy's loss is 0. Where draws were stored at the bounds,
    the policy was drawn to the middle and narrowed at every update, by gradients up to 0.16 here.
    """
    space = spaces.Box(-1, 1, (1,))
    output, (rows, n) = action_output(space), (200, 1000)
    parameters = th.tensor([policy], requires_grad=True)
    state, logits = SampledActions(space, output, n).out_of(
        th.zeros(rows, 1), parameters.detach().expand(rows, 2), generator()
    )
    log_prob = output.log_prob(parameters.expand(rows, 2)[:, None].expand(rows, n, 2), state["action"])
    loss = -(logits.softmax(1) * log_prob).sum(1).mean()
    (gradient,) = th.autograd.grad(loss, parameters)
    assert gradient.abs().max() < 0.012
