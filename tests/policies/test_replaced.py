"""Networks are replaced inside SB3's own actors and critics, under the names that SB3 gives them."""

import torch as th
from gymnasium import spaces
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_mbrl.policies.replaced import replace_network, replace_q_networks, sizes


def test_q_networks_are_registered_and_used():
    policy = SACPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, net_arch=[8])
    replace_q_networks(policy.critic, lambda inputs, outputs: nn.Sequential(nn.Linear(inputs, outputs)))
    assert [sizes(network) for network in policy.critic.q_networks] == [(5, 1), (5, 1)]
    assert {name for name, _ in policy.critic.named_parameters()} == {
        f"qf{i}.0.{part}" for i in range(2) for part in ("weight", "bias")
    }
    obs, action = th.ones(1, 3), th.full((1, 2), 2.0)
    for i, value in enumerate(policy.critic(obs, action)):
        layer = getattr(policy.critic, f"qf{i}")[0]
        assert th.allclose(value[0, 0], layer.weight[0] @ th.tensor([1.0, 1.0, 1.0, 2.0, 2.0]) + layer.bias[0])


def test_the_body_of_an_actor_keeps_its_outputs():
    policy = SACPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, net_arch=[16, 8])
    asked = []
    replace_network(policy.actor, "latent_pi", lambda *n: asked.append(n) or nn.Linear(*n))
    assert asked == [(3, 8)]
    assert policy.actor(th.zeros(4, 3)).shape == (4, 2)
