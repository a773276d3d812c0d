"""Distributions of actions against torch's and by hand."""

import pytest
import torch as th
from gymnasium import spaces
from torch import distributions as dist

from sb3_mbrl.contracts import UnsupportedSpace
from sb3_mbrl.networks.actions import BoundedNormal, action_output


def test_bounded_normals_by_the_formula(generator):
    output, out = BoundedNormal(3), th.randn((5, 6), generator=generator)
    normal = dist.Independent(dist.Normal(out[:, :3].tanh(), 0.9 * th.sigmoid(out[:, 3:] + 2) + 0.1), 1)
    action = output.sample(out, generator)
    th.testing.assert_close(output.log_prob(out, action), normal.log_prob(action))
    th.testing.assert_close(output.entropy(out), normal.entropy())
    th.testing.assert_close(output.mode(out), normal.mean)
    draws = output.sample(out.expand(20_000, 5, 6), generator)
    th.testing.assert_close(draws.mean(0), normal.mean, atol=0.04, rtol=0)
    th.testing.assert_close(draws.std(0), normal.stddev, atol=0.04, rtol=0)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(4, start=2), spaces.MultiDiscrete([3, 5]), spaces.MultiBinary(3), spaces.Box(-2, 5, (2, 2))]
)
def test_samples_are_what_the_model_takes(space, generator):
    output = action_output(space)
    out = th.randn((300, output.size), generator=generator, requires_grad=True)
    action = output.sample(out, generator)
    assert not action.requires_grad
    assert action.shape[0] == 300
    if not isinstance(space, spaces.Box):
        assert not action.is_floating_point()
        rows = action.numpy().reshape(300, *(space.shape or ()))
        assert all(space.contains(row if space.shape else row.item()) for row in rows.astype(space.dtype))
    assert output.log_prob(out, action).shape == output.entropy(out).shape == (300,)
    output.log_prob(out, action).sum().backward()
    assert out.grad.abs().sum() > 0


def test_categories_have_the_probabilities_that_log_prob_says(generator):
    output = action_output(spaces.MultiDiscrete([2, 3], start=[0, 5]), unimix=0.1)
    out = th.tensor([1.0, -1.0, 0.0, 2.0, -2.0])
    everything = th.tensor([[a, b] for a in (0, 1) for b in (5, 6, 7)])
    probs = output.log_prob(out.expand(6, -1), everything).exp()
    assert float(probs.sum()) == pytest.approx(1.0)
    draws = output.sample(out.expand(30_000, -1), generator)
    seen = th.stack([(draws == row).all(-1).float().mean() for row in everything])
    th.testing.assert_close(seen, probs, atol=0.01, rtol=0)
    assert output.mode(out).tolist() == [0, 6]
    assert float(output.entropy(out)) == pytest.approx(float(-(probs * probs.log()).sum()), abs=1e-5)


def test_bits_have_the_probabilities_that_log_prob_says(generator):
    output, out = action_output(spaces.MultiBinary(2)), th.tensor([0.5, -1.0])
    draws = output.sample(out.expand(30_000, -1), generator).float()
    th.testing.assert_close(draws.mean(0), th.sigmoid(out), atol=0.01, rtol=0)
    assert output.mode(out).tolist() == [1, 0]
    bits = th.tensor([[a, b] for a in (0, 1) for b in (0, 1)])
    assert float(output.log_prob(out.expand(4, -1), bits).exp().sum()) == pytest.approx(1.0)


def test_an_unknown_space():
    with pytest.raises(UnsupportedSpace, match="no actor for actions Dict"):
        action_output(spaces.Dict(a=spaces.Discrete(2)))
