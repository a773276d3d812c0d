"""The losses of actor and critic, by hand."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.algorithms.dreamer.losses import Trajectories, actor_loss, critic_loss, evaluate, polyak_update, replayed_returns
from sb3_mbrl.algorithms.dreamer.policy import Actor
from sb3_mbrl.networks.heads import Head
from sb3_mbrl.networks.outputs import NormalOutput, TwoHotOutput
from sb3_mbrl.returns import ReturnScale


@pytest.fixture
def critic():
    """Its value is the first feature."""
    head = Head(2, 4, 0, NormalOutput())
    with th.no_grad():
        head.out.weight.copy_(th.tensor([[1.0, 0.0]]))
    return head


def test_advantages_and_weights_by_hand(critic):
    """Two steps, values 1, 2, 3, discounts .9, .5, .8; rewards of arriving 10, 20."""
    features = th.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]])
    reward, discount = th.tensor([[99.0, 10.0, 20.0]]), th.tensor([[0.9, 0.5, 0.8]])
    scale = ReturnScale(rate=1.0)
    imagined = evaluate(features, th.zeros(1, 2, 1), reward, discount, critic.mean(features), 0.5, scale)
    second = 20 + 0.8 * 3
    first = 10 + 0.5 * (0.5 * 2 + 0.5 * second)
    th.testing.assert_close(imagined.returns, th.tensor([[first, second]]))
    width = 0.9 * (second - first)  # from the 5th to the 95th percentile of two numbers
    th.testing.assert_close(imagined.advantage, th.tensor([[first - 1, second - 2]]) / width)
    th.testing.assert_close(imagined.weight, th.tensor([[0.9, 0.45]]))


def test_the_actors_gradient_is_that_of_reinforce(generator):
    actor = Actor(3, spaces.Discrete(4), 8, 1, unimix=0.0)
    features, action = th.randn((5, 4, 3), generator=generator), th.randint(4, (5, 3, 1), generator=generator)
    advantage, weight = th.randn((5, 3), generator=generator), th.rand((5, 3), generator=generator)
    outs = actor(features[:, :-1].transpose(0, 1).flatten(0, 1)).split([4, 11])  # step by step, in two chunks
    loss, entropy = actor_loss(actor.output, outs, Trajectories(features, action, advantage, advantage, weight), 0.1)
    chances = actor(features[:, :-1]).softmax(-1)
    th.testing.assert_close(entropy, -(chances * chances.log()).sum(-1))
    expected = -weight * (chances.log().gather(-1, action)[..., 0] * advantage + 0.1 * entropy)
    th.testing.assert_close(loss, expected)
    loss.mean().backward()
    assert actor.out.weight.grad.abs().sum() > 0


def test_better_actions_become_likelier(generator):
    actor = Actor(2, spaces.Box(-1, 1, (1,)), 8, 1)
    features = th.randn((64, 2, 2), generator=generator)
    optimizer = th.optim.Adam(actor.parameters(), 1e-2)
    for _ in range(200):
        action = actor.output.sample(actor(features[:, :-1]), generator)
        advantage = -(action[..., 0] - 0.5).square()
        imagined = Trajectories(features, action, advantage, advantage - advantage.mean(), th.ones(64, 1))
        loss, _ = actor_loss(actor.output, [actor(features[:, 0])], imagined, 0.0)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert float(actor.output.mode(actor(features)).mean()) == pytest.approx(0.5, abs=0.1)


def test_the_critic_is_held_back_by_its_slow_copy(generator):
    critic, slow = (Head(2, 4, 1, TwoHotOutput(9, 3.0)) for _ in range(2))
    with th.no_grad():
        slow.out.bias.normal_(generator=generator)
    features, returns = th.randn((6, 2), generator=generator), th.randn(6, generator=generator)
    loss = critic_loss(critic.output, [critic(features)], returns, slow.mean(features).detach())
    expected = critic.loss(features, returns) + critic.loss(features, slow.mean(features))
    th.testing.assert_close(loss, expected)
    loss.mean().backward()
    assert all(parameter.grad is None for parameter in slow.parameters())
    before = slow.out.bias.clone()
    polyak_update(slow, critic, 0.25)
    th.testing.assert_close(slow.out.bias, 0.75 * before + 0.25 * critic.out.bias)


def test_real_returns_end_with_the_episode():
    """A time limit after the second row, a termination at the fifth; values are 100."""
    reward = th.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
    is_last = th.tensor([[False, True, False, False, True, False]])
    terminated = th.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    returns = replayed_returns(reward, terminated, is_last, th.full((1, 6), 100.0), gamma=0.9, lam=1.0)
    # From the first row: a reward, then the value of the last observation of the episode.
    assert float(returns[0, 0]) == pytest.approx(91.0)
    assert float(returns[0, 2]) == pytest.approx(1.9)
    assert float(returns[0, 3]) == pytest.approx(1.0)
