"""DroQ's critics: their layers, when dropout is on, saving."""

import pytest
import torch as th
from stable_baselines3 import DQN, SAC, TD3
from torch import nn

from sb3_mbrl.policies.droq import DQNDroQPolicy, SACDroQPolicy, TD3DroQPolicy, droq_network

CASES = {
    "SAC": (SAC, SACDroQPolicy, "Pendulum-v1"),
    "TD3": (TD3, TD3DroQPolicy, "Pendulum-v1"),
    "DQN": (DQN, DQNDroQPolicy, "CartPole-v1"),
}


def made(case, **kwargs):
    cls, policy, env_id = CASES[case]
    kwargs = {"learning_starts": 20, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}, **kwargs}
    return cls(policy, env_id, **kwargs)


def networks(agent):
    if isinstance(agent, DQN):
        return agent.q_net, agent.q_net_target, [agent.q_net.q_net]
    return agent.critic, agent.critic_target, agent.critic.q_networks


def test_a_layer_is_linear_dropout_norm_relu():
    network = droq_network(3, 2, [4, 5], 0.25)
    kinds = [nn.Linear, nn.Dropout, nn.LayerNorm, nn.ReLU]
    assert [type(layer) for layer in network] == [*kinds, *kinds, nn.Linear]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    x = th.randn(7, 3)
    network.eval()
    by_hand = x
    for linear, norm in ((0, 2), (4, 6)):
        by_hand = network[norm](network[linear](by_hand)).relu()
    assert th.allclose(network(x), network[8](by_hand))


def test_dropout_is_unbiased_before_the_norm():
    """Half of 10,000 units are dropped, and the others are twice as large."""
    network = droq_network(1, 1, [10_000], 0.5).train()
    with th.no_grad():
        network[0].weight.fill_(0.0)
        network[0].bias.fill_(1.0)
    after = network[1](network[0](th.zeros(1, 1)))
    assert set(after.unique().tolist()) == {0.0, 2.0}
    assert after.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("case", CASES)
def test_dropout_is_on_in_training_also_in_targets(case):
    agent = made(case)
    critic, target, nets = networks(agent)
    assert all(any(isinstance(layer, nn.Dropout) for layer in net.modules()) for net in nets)
    agent.learn(30)
    agent.policy.set_training_mode(True)
    assert critic.training
    assert target.training
    agent.policy.set_training_mode(False)
    assert not any(module.training for part in (critic, target) for module in part.modules())


@pytest.mark.parametrize("case", CASES)
def test_saving_keeps_networks_and_dropout(case, tmp_path):
    agent = made(case, policy_kwargs={"net_arch": [16, 16], "dropout": 0.3}).learn(30)
    agent.save(tmp_path / "agent")
    loaded = CASES[case][0].load(tmp_path / "agent", device="cpu")
    own, other = networks(agent)[0].state_dict(), networks(loaded)[0].state_dict()
    assert own.keys() == other.keys()
    assert all(th.equal(own[name], other[name]) for name in own)
    agent.policy.save(tmp_path / "policy")
    assert CASES[case][1].load(tmp_path / "policy", device="cpu").dropout == 0.3


def test_a_probability_is_asked_for():
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        made("SAC", policy_kwargs={"dropout": 1.5})
