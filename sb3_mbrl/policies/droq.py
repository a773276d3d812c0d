"""
DroQ's networks (Hiraoka et al. 2022, "Dropout Q-functions for doubly efficient reinforcement learning"): critics with dropout
and layer normalisation, which stay sound when there are many updates per real step.

``MBPO("DroQPolicy", env)``, ``Dyna("DroQPolicy", env)``, and for SB3's own classes ``SAC(SACDroQPolicy, env)``. The paper's
delay of the actor belongs to ``train``, which is SB3's here, so it is left out.
"""

from typing import Any

from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_mbrl.checks import number
from sb3_mbrl.policies.replaced import replace_network, replace_q_networks


def droq_network(inputs: int, outputs: int, units: list[int], dropout: float) -> nn.Sequential:
    """
    Make a network of DroQ: linear, dropout, layer norm, ReLU for every hidden layer.

    :param inputs: the number of inputs
    :param outputs: the number of outputs
    :param units: the units of the hidden layers
    :param dropout: the probability of dropout
    """
    layers: list[nn.Module] = []
    for n in units:
        layers += [nn.Linear(inputs, n), nn.Dropout(dropout), nn.LayerNorm(n), nn.ReLU()]
        inputs = n
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class _Dropout:
    """The setting that DroQ's policies share; and the mode of target networks, whose dropout is on in training."""

    target_name = "critic_target"

    def __init__(self, *args: Any, dropout: float = 0.01, **kwargs: Any) -> None:
        self.dropout = number("dropout", dropout, 0.0, 1.0)
        super().__init__(*args, **kwargs)

    def set_training_mode(self, mode: bool) -> None:
        sb3s: Any = super()
        sb3s.set_training_mode(mode)
        getattr(self, self.target_name).set_training_mode(mode)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        sb3s: Any = super()
        return {**sb3s._get_constructor_parameters(), "dropout": self.dropout}


class _DropoutCritics(_Dropout):
    """DroQ's critics in a policy with actor and critics."""

    critic_kwargs: dict[str, Any]

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        sb3s: Any = super()
        critic, units = sb3s.make_critic(features_extractor), self.critic_kwargs["net_arch"]
        replace_q_networks(critic, lambda inputs, outputs: droq_network(inputs, outputs, units, self.dropout))
        return critic


class SACDroQPolicy(_DropoutCritics, SACPolicy):
    """
    SB3's :class:`SACPolicy` with DroQ's critics.

    :param dropout: the probability of dropout in the critics (0.01 in most of the paper's tasks)
    """


class TD3DroQPolicy(_DropoutCritics, TD3Policy):
    """
    SB3's :class:`TD3Policy` with DroQ's critics.

    :param dropout: the probability of dropout in the critics
    """


class DQNDroQPolicy(_Dropout, DQNPolicy):
    """
    SB3's :class:`DQNPolicy` with DroQ's network.

    :param dropout: the probability of dropout
    """

    target_name = "q_net_target"

    def make_q_net(self) -> QNetwork:
        q_net = super().make_q_net()
        replace_network(q_net, "q_net", lambda inputs, outputs: droq_network(inputs, outputs, self.net_arch, self.dropout))
        return q_net
