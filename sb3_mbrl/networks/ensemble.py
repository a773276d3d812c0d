"""Networks with a leading member axis: an ensemble in one batched matrix product per layer."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch as th
from torch import nn
from torch.nn import functional as F

CHUNK = 2048
"""The number of rows that are evaluated at a time without gradients: hidden activations then stay in a CPU's cache"""


EVEN = 1.25
"""How many times as many rows the largest group may have as the smallest, to be computed together"""


def take(rows: th.Tensor, index: th.Tensor) -> th.Tensor:
    """Return ``rows[index]`` for an index of any shape, several times faster on a CPU."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])


def keep_freed_memory() -> None:
    """
    Make the C library's allocator keep up to 64 MB of freed memory for later.

    Otherwise glibc returns the activations of every batch or rollout step to the system, and the next one pays for them page
    by page: a tenth of the time. It stops doing so once a block of just under 32 MB was freed (``mallopt(3)``,
    ``M_MMAP_THRESHOLD``); elsewhere this does nothing.
    """
    th.empty(31 * 2**20, dtype=th.uint8)


class EnsembleLinear(nn.Module):
    """
    A stack of ``E`` independent linear layers.

    Initial weights are as in MBPO's code: normal with the standard deviation ``1 / (2 sqrt(fan_in))``, truncated at two of
    them; biases are zero.

    :param members: the number of members ``E``
    :param in_features: the number of inputs of each member
    :param out_features: the number of outputs of each member
    """

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        std = 1.0 / (2.0 * math.sqrt(in_features))
        self.weight = nn.Parameter(th.empty(members, in_features, out_features))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        self.bias = nn.Parameter(th.zeros(members, 1, out_features))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Map ``(E, B, in)`` to ``(E, B, out)``, each member its own rows."""
        return th.baddbmm(self.bias, inputs, self.weight)


class EnsembleMLP(nn.Module):
    """
    A stack of ``E`` independent multilayer perceptrons with SiLU activations.

    :param members: the number of members ``E``
    :param in_features: the number of inputs of each member
    :param hidden: the units of each hidden layer
    :param out_features: the number of outputs of each member
    :param layer_norm: the epsilon of the layer norm, without parameters, that follows each hidden layer's activation;
        ``None``: no layer norms. A large epsilon normalises only activations that are large
    :param dropout: the probability of dropout after each hidden layer's activation, while gradients are computed in training
        mode
    """

    def __init__(
        self,
        members: int,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        layer_norm: Sequence[float] | None = None,
        dropout: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.members, self.layer_norm, self.dropout = members, layer_norm, dropout
        sizes = [in_features, *hidden, out_features]
        self.layers = nn.ModuleList(EnsembleLinear(members, fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Map ``(E, B, in)`` to ``(E, B, out)``, each member its own rows."""
        # Plainly: the loop over layers below. On a CPU, large inputs go through each member in chunks.
        if _in_chunks(inputs) and inputs.shape[0] * inputs.shape[1] > CHUNK:
            return th.stack([th.cat(network(rows)) for network, rows in zip(self._networks(), inputs, strict=True)])
        dropout = self.dropout if self.training and th.is_grad_enabled() else None
        for i, layer in enumerate(self.layers[:-1]):
            inputs = F.silu(layer(inputs))
            if dropout:
                inputs = F.dropout(inputs, dropout[i])
            if self.layer_norm is not None:
                inputs = F.layer_norm(inputs, inputs.shape[-1:], eps=self.layer_norm[i])
        return self.layers[-1](inputs)

    def rows(self, inputs: th.Tensor, member: th.Tensor) -> th.Tensor:
        """
        Map each row by one member.

        Plainly, without dropout: ``self(inputs.expand(E, -1, -1))[member, arange(B)]``. Instead the rows are sorted by member,
        so that each is computed once and not ``E`` times, and the outputs are put back into their order.

        :param inputs: ``(B, in)``
        :param member: ``(B,)`` integers
        :return: ``(B, out)``
        """
        if not len(inputs):
            return inputs.new_zeros(0, cast(EnsembleLinear, self.layers[-1]).bias.shape[-1])
        counts, order, place = self._groups(member)
        if th.is_grad_enabled() and len(inputs) and max(counts) <= EVEN * min(counts):
            return self._even_rows(inputs, counts, order, place)
        grouped = inputs.index_select(0, order).split(counts)
        # Members without rows, such as those that are no elites, cost nothing.
        used = [(network, rows) for network, rows in zip(self._networks(), grouped, strict=True) if len(rows)]
        outputs = th.cat([part for network, rows in used for part in network(rows)])
        return outputs.index_select(0, place)

    def _even_rows(self, inputs: th.Tensor, counts: list[int], order: th.Tensor, place: th.Tensor) -> th.Tensor:
        """
        Map each row by its member where all have nearly as many: in one batched product per layer, which with its gradient
        takes four fifths of the time. Smaller groups repeat their last row.

        :param counts: the number of rows of each member
        :param order: the rows in the order of their members
        :param place: the place of each row in that order
        """
        most, count = max(counts), th.tensor(counts, device=order.device)
        start = count.cumsum(0) - count
        rank = th.arange(most, device=order.device).minimum(count[:, None] - 1)
        outputs = self(inputs[order[start[:, None] + rank]]).flatten(0, 1)
        moved = th.arange(self.members, device=order.device) * most - start  # where each group begins now
        return outputs.index_select(0, place + moved.repeat_interleave(count)[place])

    def _groups(self, member: th.Tensor) -> tuple[list[int], th.Tensor, th.Tensor]:
        """
        Group rows by member.

        The result is cached until other members are given: planners keep the same ones over many steps (trajectory sampling
        TSinf).

        :return: the number of rows of each member, the rows in the order of their members, and the place of each row in it
        """
        if self._kept is None or not th.equal(self._kept[0], member):
            order = member.argsort(stable=True)
            place = th.empty_like(order)
            place[order] = th.arange(len(order), device=order.device)
            self._kept = member.clone(), th.bincount(member, minlength=self.members).tolist(), order, place
        return self._kept[1:]

    _kept: tuple[th.Tensor, list[int], th.Tensor, th.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}

    def _networks(self) -> list["_Network"]:
        """Return every member as a network of its own."""
        layers = [cast(EnsembleLinear, layer) for layer in self.layers]
        weights = zip(*(layer.weight.unbind() for layer in layers), strict=True)
        biases = zip(*(layer.bias.unbind() for layer in layers), strict=True)
        return [_Network(*parameters, self.layer_norm) for parameters in zip(weights, biases, strict=True)]


class _Network(NamedTuple):
    """The layers of one member."""

    weights: tuple[th.Tensor, ...]
    biases: tuple[th.Tensor, ...]
    layer_norm: Sequence[float] | None

    def __call__(self, inputs: th.Tensor) -> list[th.Tensor]:
        """Compute the outputs of rows, chunk by chunk, in order."""
        return [self._part(rows) for rows in (inputs.split(CHUNK) if _in_chunks(inputs) else (inputs,))]

    def _part(self, rows: th.Tensor) -> th.Tensor:
        inplace = not th.is_grad_enabled()
        for i, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            rows = F.silu(th.addmm(bias, rows, weight), inplace=inplace)
            if self.layer_norm is not None:
                rows = F.layer_norm(rows, rows.shape[-1:], eps=self.layer_norm[i])
        return th.addmm(self.biases[-1], rows, self.weights[-1])


def _in_chunks(inputs: th.Tensor) -> bool:
    """Decide whether to compute in chunks, which suit a CPU's cache; a GPU is fastest on all rows at once."""
    return inputs.device.type == "cpu" and not th.is_grad_enabled()


class Standardiser(nn.Module):
    """
    A shift and scale of each column, ``(rows - mean) / std``, kept in the ``state_dict``.

    :param dim: the number of columns
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def fit(self, rows: th.Tensor, columns: th.Tensor | None = None, constant: float = 1.0) -> None:
        """
        Compute mean and standard deviation from data.

        :param rows: ``(N, dim)``
        :param columns: ``(dim,)`` booleans: the columns to standardise, the others stay as they are
        :param constant: the scale of columns that do not vary; 0: :meth:`inverse` always returns the constant
        """
        mean, std = rows.mean(0), rows.std(0, correction=0)
        if not (mean.isfinite().all() and std.isfinite().all()):  # the sum, or the squares, are beyond float32
            wide = rows.double()
            mean, std = wide.mean(0).float(), wide.std(0, correction=0).float()
        self.set(mean, std, columns, constant)

    def set(self, mean: th.Tensor, std: th.Tensor, columns: th.Tensor | None = None, constant: float = 1.0) -> None:
        """Set mean and standard deviation, ``(dim,)`` each; see :meth:`fit` for the other parameters."""
        # float32: a constant column of value c has a computed deviation of about 1e-7 c
        std = th.where(std <= 1e-6 * mean.abs().clamp(min=1e-6), constant, std)
        if columns is not None:
            mean, std = th.where(columns, mean, 0.0), th.where(columns, std, 1.0)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, rows: th.Tensor) -> th.Tensor:
        return (rows - self.mean) / th.where(self.std > 0, self.std, 1.0)

    def inverse(self, rows: th.Tensor) -> th.Tensor:
        return th.addcmul(self.mean, rows, self.std)
