"""
SimBa's networks (Lee et al. 2025, "SimBa: simplicity bias for scaling up parameters in deep reinforcement learning"): running
normalisation of observations, residual blocks, layer normalisation, and weight decay.

``MBPO("SimbaPolicy", env)``, ``Dyna("SimbaPolicy", env)``, and for SB3's own classes ``SAC(SACSimbaPolicy, env)``.
"""

from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor, SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_mbrl.policies.replaced import replace_network, replace_q_networks


class RunningNorm(nn.Module):
    """
    The normalisation of inputs by the running mean and variance of all batches that were learned from (the paper's RSNorm).

    The statistics move in training, where there are gradients. They are buffers called ``running_...``, which SB3 copies to
    target networks with every update.

    :param size: the number of columns
    """

    running_mean: th.Tensor
    running_var: th.Tensor
    running_count: th.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", th.zeros(size))
        self.register_buffer("running_var", th.ones(size))
        self.register_buffer("running_count", th.zeros(()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalise ``(B, size)``."""
        if self.training and th.is_grad_enabled():
            self._count(x.detach())
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()

    def _count(self, x: th.Tensor) -> None:
        """Merge the mean and variance of a batch with those of all before (Chan et al. 1979)."""
        mean, var = x.mean(0), x.var(0, unbiased=False)
        total = self.running_count + len(x)
        share, change = len(x) / total, mean - self.running_mean
        self.running_mean += change * share
        self.running_var += (var - self.running_var) * share + change.square() * share * (1 - share)
        self.running_count.copy_(total)


class NormalisedFeatures(BaseFeaturesExtractor):
    """
    Flattened observations, normalised by :class:`RunningNorm`.

    :param observation_space: anything but images and ``Dict``
    """

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.norm = RunningNorm(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Return ``(B, features_dim)``."""
        return self.norm(observations.flatten(1))


class ResidualBlock(nn.Module):
    """
    A residual block: ``x + MLP(LayerNorm(x))``, whose hidden layer has four times the units.

    :param units: the number of units
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(units)
        self.up, self.down = nn.Linear(units, 4 * units), nn.Linear(4 * units, units)
        for layer in (self.up, self.down):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Return ``(B, units)``."""
        return x + self.down(self.up(self.norm(x)).relu())


def simba_body(inputs: int, units: list[int]) -> nn.Sequential:
    """
    Make a network of SimBa without an output layer: an embedding, residual blocks, and a layer norm.

    :param inputs: the number of inputs
    :param units: the units of the blocks, all equal: one block per entry
    """
    if not units or len(set(units)) > 1:
        raise ValueError(f"net_arch has {units}: blocks with residual connections have equal units, such as [256, 256]")
    embedding = nn.Linear(inputs, units[0])
    nn.init.orthogonal_(embedding.weight)
    nn.init.zeros_(embedding.bias)
    return nn.Sequential(embedding, *(ResidualBlock(n) for n in units), nn.LayerNorm(units[-1]))


def simba_network(inputs: int, outputs: int, units: list[int]) -> nn.Sequential:
    """Make a network of SimBa with a linear output layer; see :func:`simba_body`."""
    body, head = simba_body(inputs, units), nn.Linear(units[-1], outputs)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(body, head)


class _Defaults:
    """The defaults that SimBa's policies share: AdamW with a weight decay of 0.01, and normalised observations."""

    @staticmethod
    def default_arch() -> Any:
        """Return the paper's sizes, as SB3 takes them."""
        return {"pi": [128], "qf": [512, 512]}

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, lr_schedule: Any, *args: Any, **kwargs: Any
    ) -> None:
        if not args and kwargs.get("net_arch") is None:
            kwargs["net_arch"] = self.default_arch()
        kwargs.setdefault("features_extractor_class", NormalisedFeatures)
        kwargs.setdefault("optimizer_class", th.optim.AdamW)
        if kwargs["optimizer_class"] is th.optim.AdamW:
            kwargs["optimizer_kwargs"] = {"weight_decay": 1e-2, **(kwargs.get("optimizer_kwargs") or {})}
        sb3s: Any = super()
        sb3s.__init__(observation_space, action_space, lr_schedule, *args, **kwargs)


class _ResidualCritics(_Defaults):
    """SimBa's critics in a policy with actor and critics."""

    critic_kwargs: dict[str, Any]

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        sb3s: Any = super()
        critic, units = sb3s.make_critic(features_extractor), self.critic_kwargs["net_arch"]
        replace_q_networks(critic, lambda inputs, outputs: simba_network(inputs, outputs, units))
        return critic


class SACSimbaPolicy(_ResidualCritics, SACPolicy):
    """
    SB3's :class:`SACPolicy` with SimBa's networks. ``net_arch`` names the units of the residual blocks: by default one of 128
    for the actor, and two of 512 for each critic, as in the paper.
    """

    def make_actor(self, features_extractor: Any = None) -> Actor:
        actor = super().make_actor(features_extractor)
        units: Any = self.actor_kwargs["net_arch"]
        replace_network(actor, "latent_pi", lambda inputs, _: simba_body(inputs, units))
        return actor


class TD3SimbaPolicy(_ResidualCritics, TD3Policy):
    """SB3's :class:`TD3Policy` with SimBa's networks; ``net_arch`` as for :class:`SACSimbaPolicy`."""

    def make_actor(self, features_extractor: Any = None) -> TD3Actor:
        actor = super().make_actor(features_extractor)
        units: Any = self.actor_kwargs["net_arch"]
        replace_network(actor, "mu", lambda inputs, outputs: nn.Sequential(simba_network(inputs, outputs, units), nn.Tanh()))
        return actor


class DQNSimbaPolicy(_Defaults, DQNPolicy):
    """SB3's :class:`DQNPolicy` with SimBa's network: by default two residual blocks of 256."""

    @staticmethod
    def default_arch() -> Any:
        return [256, 256]

    def make_q_net(self) -> QNetwork:
        q_net = super().make_q_net()
        replace_network(q_net, "q_net", lambda inputs, outputs: simba_network(inputs, outputs, self.net_arch))
        return q_net
