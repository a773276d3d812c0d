"""The deterministic half of a latent state: how it goes on with the last sample and action."""

from typing import Any

import torch as th
from torch import nn

from sb3_mbrl.networks.layers import BlockLinear, Layer, LayerNorm, Linear, RMSNorm, SiLU


class Cell(nn.Module):
    """
    ``deter' = f(deter, stoch, action)``. What does not depend on the state is computed for a whole sequence at once by
    :meth:`prepare`, and handed in step by step.

    :param deter: numbers of the deterministic state
    :param stoch: numbers of the stochastic state
    :param action: columns of an encoded action
    """

    def __init__(self, deter: int, stoch: int, action: int) -> None:
        super().__init__()
        self.deter, self.stoch, self.action = deter, stoch, action

    def prepare(self, action: th.Tensor) -> th.Tensor:
        """
        ``(..., A)`` to ``(..., P)``: the part that the action alone decides. Numbers beyond the bounds count as the bound, as
        they do for the environment: an actor's samples are not cut off.
        """
        return action / action.detach().abs().clamp(min=1.0)

    def laid_out(self) -> Any:
        """Weights in the form in which steps use them: made once, for many steps."""
        return None

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        """
        ``(B, deter)`` from ``(B, deter)``, ``(B, stoch)`` and what :meth:`prepare` made.

        :param weights: of :meth:`laid_out`, if there is more than one step
        """
        raise NotImplementedError


class GRUCell(Cell):
    """
    A dense layer on sample and action, then a plain GRU (PlaNet, DreamerV1).

    :param hidden: units of the layer
    :param activation: of the layer
    """

    def __init__(self, deter: int, stoch: int, action: int, hidden: int = 200, activation: str = "elu") -> None:
        super().__init__(deter, stoch, action)
        self.inputs = Layer(stoch + action, hidden, "none", activation)
        self.gru = nn.GRUCell(hidden, deter)

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        return self.gru(self.inputs(th.cat([stoch, prepared], -1)), deter).to(deter.dtype)


class LayerNormGRUCell(Cell):
    """
    One dense map for all gates, normalised before they are cut apart, and an update gate that begins nearly closed (DreamerV2;
    DreamerV3 in 2023).

    :param hidden: units of the layer before it
    :param norm: of that layer
    :param activation: of that layer
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
        return gated(self.norm(self.gates(th.cat([inputs, deter], -1))).chunk(3, -1), deter)


class BlockGRUCell(Cell):
    """
    DreamerV3's: state, sample and action are projected separately, every block of the state sees all three and itself, and the
    gates are block-diagonal.

    :param hidden: units of each projection
    :param blocks: of the state
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

    def laid_out(self) -> tuple[th.Tensor, th.Tensor]:
        # Every block sees its own part of the state and all projections: the latter is one dense map for all blocks.
        own, shared = self.mixed.weight.tensor_split([self.deter // self.blocks], 1)
        return own, shared.transpose(0, 1).flatten(1)

    def forward(self, deter: th.Tensor, stoch: th.Tensor, prepared: th.Tensor, weights: Any = None) -> th.Tensor:
        seen = th.cat([self.from_deter(deter), self.from_stoch(stoch), prepared], -1)
        own, shared = self.laid_out() if weights is None else weights
        dense = th.addmm(self.mixed.bias, seen, shared)
        x = th.baddbmm(by_block(dense, self.blocks), by_block(deter, self.blocks), own)
        x = self.activation(self.norm(x.transpose(0, 1).flatten(1)))
        # The gates stay block by block, ``(blocks, B, deter / blocks)``, until the new state is put together.
        gates = th.bmm(by_block(x, self.blocks), self.gates.weight).add_(self.gates.bias.view(self.blocks, 1, -1))
        return gated(gates.chunk(3, -1), by_block(deter, self.blocks)).transpose(0, 1).flatten(1)


def by_block(x: th.Tensor, blocks: int) -> th.Tensor:
    """``(B, blocks * n)`` as ``(blocks, B, n)``, without a copy."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def gated(gates: tuple[th.Tensor, ...], deter: th.Tensor) -> th.Tensor:
    """
    The GRU of DreamerV2 and V3: the reset gate acts on the candidate, and the update gate's bias is -1.

    :param gates: nobody else's: where no gradients are needed, the new state is made in their place
    """
    reset, candidate, update = (gate.to(deter.dtype) for gate in gates)
    if not th.is_grad_enabled():
        # tanh(x) = 2 sigmoid(2 x) - 1, which takes a third of the time.
        candidate = reset.sigmoid_().mul_(candidate).mul_(2).sigmoid_().mul_(2).sub_(1)
        return th.lerp(deter, candidate, update.sub_(1).sigmoid_())
    candidate = th.tanh(th.sigmoid(reset) * candidate)
    return th.lerp(deter, candidate, th.sigmoid(update - 1))
