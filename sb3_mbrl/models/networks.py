"""Networks with a leading member axis: an ensemble in one batched matrix product per layer."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch as th
from torch import nn
from torch.nn import functional as F

CHUNK = 2048
"""
Rows of one member evaluated at a time when no gradient is needed: hidden activations then stay in a processor core's own
cache.
"""


def take(rows: th.Tensor, index: th.Tensor) -> th.Tensor:
    """``rows[index]`` for an index of any shape; on processors several times faster than that."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])


class EnsembleLinear(nn.Module):
    """
    ``E`` independent linear layers. Initialised as in MBPO's code: normal with standard deviation ``1 / (2 sqrt(fan_in))``,
    cut at two standard deviations; biases zero.

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
        self.layers = nn.ModuleList(EnsembleLinear(members, fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Every member on its own rows: ``(E, B, in)`` to ``(E, B, out)``."""
        if _in_chunks(inputs) and inputs.shape[1] > CHUNK:
            return th.stack([th.cat(self._one_member(member, rows)) for member, rows in enumerate(inputs)])
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
        grouped = inputs.index_select(0, order).split(counts)
        outputs = th.cat([part for e, rows in enumerate(grouped) if len(rows) for part in self._one_member(e, rows)])
        place = th.empty_like(order)
        place[order] = th.arange(len(order), device=order.device)
        return outputs.index_select(0, place)

    def _one_member(self, member: int, inputs: th.Tensor) -> list[th.Tensor]:
        """The outputs of one member, in order, in as many parts as they were computed in."""
        layers = [(layer.weight[member], layer.bias[member]) for layer in self.layers]
        parts = inputs.split(CHUNK) if _in_chunks(inputs) else (inputs,)
        return [_forward(layers, rows) for rows in parts]


def _forward(layers: list[tuple[th.Tensor, th.Tensor]], inputs: th.Tensor) -> th.Tensor:
    """One network, given as weights and biases."""
    inplace = not th.is_grad_enabled()
    for weight, bias in layers[:-1]:
        inputs = F.silu(th.addmm(bias, inputs, weight), inplace=inplace)
    weight, bias = layers[-1]
    return th.addmm(bias, inputs, weight)


def _in_chunks(inputs: th.Tensor) -> bool:
    """Small pieces suit a processor's cache; an accelerator is fastest on all rows at once."""
    return inputs.device.type == "cpu" and not th.is_grad_enabled()


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
        return th.addcmul(self.mean, rows, self.std)
