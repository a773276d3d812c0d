"""Networks with a leading member axis: an ensemble in one batched matrix product per layer."""

import math
from collections.abc import Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

CHUNK = 4096
"""Rows of one member evaluated at a time when no gradient is needed: hidden activations then stay in the processor's cache."""


class EnsembleLinear(nn.Module):
    """
    ``E`` independent linear layers. Initialised as in MBPO's code: normal with standard deviation ``1 / (2 sqrt(fan_in))``, cut at two
    standard deviations; biases zero.

    :param members: ``E``
    :param in_features: inputs per member
    :param out_features: outputs per member
    """

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        std = 1.0 / (2.0 * math.sqrt(in_features))
        self.weight = nn.Parameter(th.empty(members, in_features, out_features))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        self.bias = nn.Parameter(th.zeros(members, 1, out_features))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """``(E, B, in)`` to ``(E, B, out)``."""
        return th.baddbmm(self.bias, inputs, self.weight)


class EnsembleMLP(nn.Module):
    """
    ``E`` independent MLPs with SiLU activations.

    :param members: ``E``
    :param in_features: inputs
    :param hidden: units of each hidden layer
    :param out_features: outputs
    """

    def __init__(self, members: int, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.members = members
        sizes = [in_features, *hidden, out_features]
        self.layers = nn.ModuleList(
            EnsembleLinear(members, fan_in, fan_out) for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Every member on its own rows: ``(E, B, in)`` to ``(E, B, out)``."""
        for layer in self.layers[:-1]:
            inputs = F.silu(layer(inputs))
        return self.layers[-1](inputs)

    def rows(self, inputs: th.Tensor, member: th.Tensor) -> th.Tensor:
        """
        Every row by one member: rows are sorted by member, so that each is computed once instead of ``E`` times.

        :param inputs: ``(B, in)``
        :param member: ``(B,)`` integers
        :return: ``(B, out)``
        """
        counts = th.bincount(member, minlength=self.members).tolist()
        order = member.argsort(stable=True)
        grouped = inputs[order].split(counts)
        outputs = th.cat([self._one_member(e, rows) for e, rows in enumerate(grouped) if len(rows)])
        return outputs[order.argsort()]

    def _one_member(self, member: int, inputs: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            return self._layers_of(member, inputs, inplace=False)
        return th.cat([self._layers_of(member, rows, inplace=True) for rows in inputs.split(CHUNK)])

    def _layers_of(self, member: int, inputs: th.Tensor, *, inplace: bool) -> th.Tensor:
        for layer in self.layers[:-1]:
            inputs = F.silu(th.addmm(layer.bias[member], inputs, layer.weight[member]), inplace=inplace)
        last = self.layers[-1]
        return th.addmm(last.bias[member], inputs, last.weight[member])


class Standardiser(nn.Module):
    """
    Shift and scale of every column on its own, kept in the ``state_dict``.

    :param dim: the number of columns
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def fit(self, rows: th.Tensor, columns: th.Tensor | None = None) -> None:
        """
        Take mean and standard deviation from data. A constant column keeps a scale of 1.

        :param rows: ``(N, dim)``
        :param columns: ``(dim,)`` booleans: the columns to standardise, the others stay as they are
        """
        mean, std = rows.mean(0), rows.std(0, correction=0)
        # float32: a constant column of value c has a computed deviation of about 1e-7 c
        std = th.where(std <= 1e-6 * mean.abs().clamp(min=1e-6), th.ones_like(std), std)
        if columns is not None:
            mean, std = th.where(columns, mean, 0.0), th.where(columns, std, 1.0)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, rows: th.Tensor) -> th.Tensor:
        return (rows - self.mean) / self.std

    def inverse(self, rows: th.Tensor) -> th.Tensor:
        return rows * self.std + self.mean
