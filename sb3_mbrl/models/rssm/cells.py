"""Cells: how the deterministic half of a latent state follows from the last state, sample and action."""

from typing import Any

import torch as th
from torch import nn

from sb3_mbrl.networks.layers import BlockLinear, Layer, LayerNorm, Linear, RMSNorm, SiLU


class Cell(nn.Module):
    """
    A recurrent map ``deter' = f(deter, stoch, action)``.

    The part of it that does not depend on the state is computed by :meth:`prepare`, for a whole sequence at once; steps are
    given its result.

    :param deter: the size of the deterministic state
    :param stoch: the number of elements of the stochastic state
    :param action: the number of columns of an encoded action
    """

    def __init__(self, deter: int, stoch: int, action: int) -> None:
        super().__init__()
        self.deter, self.stoch, self.action = deter, stoch, action

    def prepare(self, action: th.Tensor) -> th.Tensor:
        """
        Compute the part that depends on the action alone, from ``(..., A)`` to ``(..., P)``.

        Continuous actions beyond -1 and 1 count as the bound, as they do for the environment: an actor's samples are not
        clipped. This divides by ``max(1, |action|)`` and lets gradients through, unlike ``clamp``.
        """
        return action / action.detach().abs().clamp(min=1.0)

    def step_weights(self) -> Any:
        """Arrange the weights as steps use them: once for many steps."""
        return None

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        """
        Compute the next deterministic state ``(B, deter)``.

        :param deter: ``(B, deter)``
        :param stoch: ``(B, stoch)``
        :param prepared: ``(B, P)``: the result of :meth:`prepare`
        :param weights: the result of :meth:`step_weights`, where there is more than one step
        """
        raise NotImplementedError


class GRUCell(Cell):
    """
    A plain GRU behind a dense layer on sample and action (PlaNet, DreamerV1).

    :param hidden: the units of the layer
    :param activation: the activation of the layer
    """

    def __init__(self, deter: int, stoch: int, action: int, hidden: int = 200, activation: str = "elu") -> None:
        super().__init__(deter, stoch, action)
        self.inputs = Layer(stoch + action, hidden, "none", activation)
        self.gru = nn.GRUCell(hidden, deter)

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        return self.gru(self.inputs(th.cat([stoch, prepared], -1)), deter).to(deter.dtype)


class LayerNormGRUCell(Cell):
    """
    A GRU with one dense map for all gates, which are normalised together before they are split, and with an update gate that
    begins nearly closed (DreamerV2; DreamerV3 in 2023).

    :param hidden: the units of the layer on sample and action before it
    :param norm: the norm of that layer
    :param activation: the activation of that layer
    """

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int = 200, norm: str = "none", activation: str = "elu"
    ) -> None:
        super().__init__(deter, stoch, action)
        self.inputs = Layer(stoch + action, hidden, norm, activation)
        self.gates = Linear(hidden + deter, 3 * deter, bias=False)
        self.norm = LayerNorm(3 * deter)

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        inputs = self.inputs(th.cat([stoch, prepared], -1))
        return gated_update(self.norm(self.gates(th.cat([inputs, deter], -1))).chunk(3, -1), deter)


class BlockGRUCell(Cell):
    """
    A GRU whose state is cut into blocks (DreamerV3).

    State, sample and action are projected separately. Every block of the state sees the three projections and its own last
    value, but not that of other blocks::

        projections = [from_deter(deter), from_stoch(stoch), from_action(action)]
        x_g     = silu(norm([deter_g, projections] @ mixed_g))        for each block g
        gates_g = x_g @ gates_g
        deter_g' = gated_update(gates_g, deter_g)

    :param hidden: the units of each projection
    :param blocks: the number of blocks
    """

    def __init__(self, deter: int, stoch: int, action: int, hidden: int = 1024, blocks: int = 8) -> None:
        super().__init__(deter, stoch, action)
        self.blocks = blocks
        self.from_deter, self.from_stoch, self.from_action = (Layer(n, hidden) for n in (deter, stoch, action))
        self.mixed = BlockLinear(blocks * 3 * hidden + deter, deter, blocks)
        self.norm, self.activation = RMSNorm(deter), SiLU()
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def prepare(self, action: th.Tensor) -> th.Tensor:
        return self.from_action(super().prepare(action))

    def step_weights(self) -> tuple[th.Tensor, th.Tensor]:
        """
        Split the weights of ``mixed`` into two maps.

        :return: the block-diagonal map of the state, ``(blocks, deter / blocks, deter / blocks)``, and the map of the
            projections, which all blocks see alike, as one dense matrix ``(3 hidden, deter)``
        """
        own, shared = self.mixed.weight.tensor_split([self.deter // self.blocks], 1)
        return own, shared.transpose(0, 1).flatten(1)

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        # Plainly: x = self.mixed(every block of deter with a copy of all projections beside it). The copies would be `blocks`
        # times as wide; instead the projections go through one dense product, and the blocks' own part is added to it.
        projections = th.cat([self.from_deter(deter), self.from_stoch(stoch), prepared], -1)
        own, shared = self.step_weights() if weights is None else weights
        dense = th.addmm(self.mixed.bias, projections, shared)
        x = th.baddbmm(by_block(dense, self.blocks), by_block(deter, self.blocks), own)
        x = self.activation(self.norm(x.transpose(0, 1).flatten(1)))
        # Plainly: gates = self.gates(x). They stay block by block, (blocks, B, 3 deter / blocks), until the new state is put
        # together, which saves copies.
        gates = th.bmm(by_block(x, self.blocks), self.gates.weight).add_(self.gates.bias.view(self.blocks, 1, -1))
        return gated_update(gates.chunk(3, -1), by_block(deter, self.blocks)).transpose(0, 1).flatten(1)


def by_block(x: th.Tensor, blocks: int) -> th.Tensor:
    """View ``(B, blocks * n)`` as ``(blocks, B, n)``, without a copy."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def gated_update(gates: tuple[th.Tensor, ...], deter: th.Tensor) -> th.Tensor:
    """
    Compute the new state of the GRU of DreamerV2 and V3, whose reset gate acts on the candidate::

        candidate = tanh(sigmoid(reset) * candidate)
        update    = sigmoid(update - 1)             # begins at 0.27: most of the state is kept
        deter'    = update * candidate + (1 - update) * deter

    :param gates: reset, candidate and update before their activations, ``(..., deter)`` each; overwritten in place when
        gradients are off, so nothing else may hold them
    :param deter: ``(..., deter)``
    """
    reset, candidate, update = (gate.to(deter.dtype) for gate in gates)
    if not th.is_grad_enabled():
        # The same in place, with tanh(x) = 2 sigmoid(2 x) - 1, which takes a third of tanh's time.
        candidate = reset.sigmoid_().mul_(candidate).mul_(2).sigmoid_().mul_(2).sub_(1)
        return th.lerp(deter, candidate, update.sub_(1).sigmoid_())
    candidate = th.tanh(th.sigmoid(reset) * candidate)
    return th.lerp(deter, candidate, th.sigmoid(update - 1))
