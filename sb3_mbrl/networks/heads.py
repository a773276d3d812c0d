"""Heads: layers on features, and an output distribution."""

import torch as th
from torch import nn

from sb3_mbrl.networks.layers import MLP, Linear, chunks
from sb3_mbrl.networks.outputs import Output


class Head(nn.Module):
    """
    A multilayer perceptron on features whose outputs are the parameters of a distribution.

    :param inputs: the number of features
    :param units: the units of every layer
    :param layers: the number of layers
    :param output: the distribution
    :param style: ``norm`` and ``activation`` of the layers
    """

    def __init__(self, inputs: int, units: int, layers: int, output: Output, **style: str) -> None:
        super().__init__()
        self.body, self.output = MLP(inputs, units, layers, **style), output
        self.out = Linear(self.body.outputs, output.size, output.scale)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """The distribution's parameters ``(..., size)``."""
        return self.out(self.body(features)).float()

    def mean(self, features: th.Tensor) -> th.Tensor:
        """The mean of the distribution, ``(..., *shape)``; computed in chunks, which are faster on a CPU."""
        means = th.cat([self.output.mean(self(rows)) for rows in chunks(features)])
        return means.view(*features.shape[:-1], *self.output.shape)

    def loss(self, features: th.Tensor, target: th.Tensor) -> th.Tensor:
        """The negative log-likelihood (or squared error) of targets."""
        return self.output.loss(self(features), target)
