"""The policy of :class:`~sb3_mbrl.DHMBPO`: normalised observations, and a stack of regularised critics with bounded values."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import torch.nn.functional as F
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_mbrl.checks import number, whole
from sb3_mbrl.networks.ensemble import EnsembleLinear, Standardiser


class StandardisedFeatures(BaseFeaturesExtractor):
    """
    Flattened observations, standardised by the mean and standard deviation of the real ones, which the agent sets at every fit
    of its world model.

    :param observation_space: anything but images and ``Dict``
    """

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.standardiser = Standardiser(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Return ``(B, features_dim)``."""
        return self.standardiser(observations.reshape(len(observations), -1))


def rare_dropout(rows: th.Tensor, p: float) -> th.Tensor:
    """
    Drop values with a small probability, and scale the others so that the mean stays the same.

    Plainly: ``F.dropout(rows, p)``, which draws a number for every value. Instead as many places as are dropped on average are
    drawn, with replacement, at a tenth of the time.

    :param rows: of any shape
    :param p: the probability, below 0.1; above it this is ``F.dropout``
    """
    if p >= 0.1:
        return F.dropout(rows, p)
    n = rows.numel()
    # The number of draws is Poisson's, so that every value stays with the probability exp(-p).
    dropped = int(th.poisson(th.tensor(p * n)))
    places = th.randint(n, (dropped,), device=rows.device)
    return (rows * math.exp(p)).view(-1).index_fill(0, places, 0.0).view_as(rows)


class StackedCritic(ContinuousCritic):
    """
    Several critics in one batched matrix product per layer: SiLU, dropout, and a layer norm without parameters before each
    layer but the first. Values are ``centre + width * output``, with the bounds that :meth:`set_bounds` gives; outputs begin
    at 0. The arguments are those of SB3's ``ContinuousCritic``, and ``dropout``.

    :param dropout: the probability of dropout
    """

    bounds: th.Tensor

    def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        linear = [layer for layer in self.q_networks[0].modules() if isinstance(layer, nn.Linear)]
        units, inputs = [layer.out_features for layer in linear], linear[0].in_features
        for i in range(self.n_critics):
            delattr(self, f"qf{i}")
        self.q_networks = []
        self.dropout = dropout
        self.layers = nn.ModuleList()
        for n in units:
            self.layers.append(last := EnsembleLinear(self.n_critics, inputs, n))
            inputs = n
        nn.init.zeros_(last.weight)
        self.register_buffer("bounds", th.tensor([-1.0, 1.0]))

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return the value of every critic, ``(B, 1)`` each."""
        features = self.extract_features(obs, self.features_extractor)
        return self._values(th.cat([features, actions], dim=1)).unbind(0)

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Return the values of the first critic, ``(B, 1)``."""
        return self(obs, actions)[0]

    def _values(self, inputs: th.Tensor) -> th.Tensor:
        rows = inputs.expand(self.n_critics, -1, -1)
        for layer in self.layers[:-1]:
            rows = F.silu(layer(rows))
            if self.dropout and self.training:
                rows = rare_dropout(rows, self.dropout)
            rows = F.layer_norm(rows, rows.shape[-1:])
        low, high = self.bounds
        return (low + high) / 2 + (high - low) / 2 * self.layers[-1](rows)

    def set_bounds(self, low: float, high: float) -> None:
        """Set the bounds of values; what the critics have learned stays the same, in units of the width."""
        self.bounds[0], self.bounds[1] = low, high


class ValueGradientPolicy(SACPolicy):
    """
    SB3's :class:`SACPolicy` with an actor and critics on standardised observations. ``net_arch`` is by default three layers of
    256 for all, and there are five critics, as in DHMBPO.

    :param dropout: the probability of dropout in the critics
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        *args: Any,
        dropout: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        self.dropout = number("dropout", dropout, 0.0, 1.0)
        if self.dropout == 1.0:
            raise ValueError("dropout=1.0: nothing would be left; give less than 1")
        if "n_critics" in kwargs:
            kwargs["n_critics"] = whole("n_critics", kwargs["n_critics"], 1)
        if not args and kwargs.get("net_arch") is None:
            kwargs["net_arch"] = [256, 256, 256]
        kwargs.setdefault("activation_fn", nn.SiLU)
        kwargs.setdefault("n_critics", 5)
        kwargs.setdefault("features_extractor_class", StandardisedFeatures)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        kwargs: Any = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return StackedCritic(**kwargs, dropout=self.dropout).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "dropout": self.dropout}

    def standardise(self, observations: np.ndarray) -> None:
        """
        Standardise by the mean and standard deviation of observations from now on.

        :param observations: raw, ``(N, ...)``
        """
        rows = th.as_tensor(observations, dtype=th.float32, device=self.device).reshape(len(observations), -1)
        for part in (self.actor, self.critic, self.critic_target):
            if isinstance(part.features_extractor, StandardisedFeatures):
                part.features_extractor.standardiser.fit(rows)
