"""The settings of an RSSM: sizes, and the choices that distinguish PlaNet, DreamerV1, V2 and V3."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sb3_mbrl.checks import did_you_mean, number, whole
from sb3_mbrl.models.rssm.cells import BlockGRUCell, Cell, GRUCell, LayerNormGRUCell
from sb3_mbrl.networks.latents import CategoricalLatent, GaussianLatent, Latent
from sb3_mbrl.networks.outputs import NormalOutput, Output, SymlogOutput, TwoHotOutput

SIZES: dict[str, dict[str, Any]] = {
    "size1m": {"deter": 512, "hidden": 64, "classes": 4, "depth": 4, "units": 64},
    "size12m": {"deter": 2048, "hidden": 256, "classes": 16, "depth": 16, "units": 256},
    "size25m": {"deter": 3072, "hidden": 384, "classes": 24, "depth": 24, "units": 384},
    "size50m": {"deter": 4096, "hidden": 512, "classes": 32, "depth": 32, "units": 512},
    "size100m": {"deter": 6144, "hidden": 768, "classes": 48, "depth": 48, "units": 768},
    "size200m": {"deter": 8192, "hidden": 1024, "classes": 64, "depth": 64, "units": 1024},
    "size400m": {"deter": 12288, "hidden": 1536, "classes": 96, "depth": 96, "units": 1536},
    # Not the authors': for CPUs. At ten times the authors' learning rate, bins at half a billion would make values explode
    # before they are learned, so these bins reach to 22,000. Vectors weigh more, so that few steps are enough.
    "tiny": {
        "deter": 256,
        "hidden": 128,
        "classes": 8,
        "depth": 4,
        "units": 128,
        "stoch": 8,
        "bins": 127,
        "reward_range": 10.0,
        "vector_scale": 20.0,
    },
}
"""The settings of each size: the authors' (``configs.yaml``), and ours, ``"tiny"``"""


@dataclass(frozen=True)
class Settings:
    """
    The keyword arguments of :class:`~sb3_mbrl.models.rssm.RSSM` that shape the model. The defaults are DreamerV3's (2025).

    :param deter: the size of the deterministic state
    :param hidden: the units of the layers between the states
    :param stoch: the number of variables of the stochastic state
    :param classes: the number of classes of each variable, where they are categorical
    :param units: the units of the layers of encoder, decoder and heads
    :param depth: the depth of the convolutions: the unit of their numbers of channels
    :param latent: the stochastic state: ``"categorical"`` (DreamerV2, V3) or ``"gaussian"`` (PlaNet, DreamerV1)
    :param std: the standard deviation of Gaussian latents: ``"softplus"`` (PlaNet, V1) or ``"sigmoid2"`` (V2)
    :param unimix: the share of a uniform distribution in every categorical distribution
    :param cell: the cell: ``"block_gru"`` (V3), ``"layer_norm_gru"`` (V2, V3 in 2023) or ``"gru"`` (PlaNet, V1)
    :param blocks: the number of blocks of the block-diagonal cell, and of the map from state to images
    :param norm: the norm of the layers: ``"rms"``, ``"layer"`` or ``"none"``
    :param activation: the activation of the layers: ``"silu"``, ``"elu"`` or ``"relu"``
    :param layers: the number of layers of the encoder and the decoder of vectors
    :param head_layers: the number of layers of the reward and the continue head
    :param prior_layers: the number of layers from the deterministic state to the prior
    :param post_layers: the number of layers from the deterministic state and the observation to the posterior
    :param kl: the divergence loss: ``"split"`` (V3), ``"balanced"`` (V2), ``"joint"`` (V1: free nats on the mean) or
        ``"per_step"`` (PlaNet); see :mod:`~sb3_mbrl.models.rssm.divergences`
    :param free_nats: the divergence below which it is not reduced any further
    :param dynamics_scale: the weight of the loss that moves the prior towards the posterior (``"split"``)
    :param representation_scale: the weight of the loss that moves the posterior towards the prior (``"split"``)
    :param kl_scale: the weight of the divergence (all but ``"split"``)
    :param kl_balance: the share of the divergence that moves the prior (``"balanced"``)
    :param vectors: the scale of continuous observations: ``"symlog"`` (V3; squashed for the encoder and predicted squashed) or
        ``"normal"`` (V2; as they are)
    :param reward: the reward's distribution: ``"twohot"`` (V3), ``"twohot_symlog"`` (V3 in 2023) or ``"normal"``
    :param reward_range: the range of a two-hot reward, ``symexp(±reward_range)``
    :param bins: the number of bins of a two-hot reward
    :param vector_scale: the weight of the squared errors of continuous observations. Where an important number is small (an
        angle of 0.2), its error weighs little against the divergence, and the latent states do not represent it: raise this
    :param reward_scale: the weight of the reward's loss
    :param continue_scale: the weight of the continue head's loss; 0: episodes never end
    :param gamma: the discount, which is part of what the continue head learns (``1 - 1 / 333`` in V3)
    """

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int
    stoch: int = 32
    latent: str = "categorical"
    std: str = "softplus"
    unimix: float = 0.01
    cell: str = "block_gru"
    blocks: int = 8
    norm: str = "rms"
    activation: str = "silu"
    layers: int = 3
    head_layers: int = 1
    prior_layers: int = 2
    post_layers: int = 1
    kl: str = "split"
    free_nats: float = 1.0
    dynamics_scale: float = 1.0
    representation_scale: float = 0.1
    kl_scale: float = 1.0
    kl_balance: float = 0.8
    vectors: str = "symlog"
    reward: str = "twohot"
    reward_range: float = 20.0
    bins: int = 255
    vector_scale: float = 1.0
    reward_scale: float = 1.0
    continue_scale: float = 1.0
    gamma: float = 1 - 1 / 333

    def __post_init__(self) -> None:
        for name, low in MINIMA.items():
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: give a whole number from {low} on")
            whole(name, value, low)
        for name, high in MAXIMA.items():
            number(name, getattr(self, name), 0.0, high)
        number("reward_range", self.reward_range, 0.0, MAX_REWARD_RANGE, open_low=True)
        if self.unimix == 1.0:
            raise ValueError("unimix=1.0: a uniform distribution alone says nothing; give less than 1")
        for name, allowed in ALLOWED_NAMES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, allowed))}")
        if self.classes > 256:
            raise ValueError(f"classes={self.classes}: at most 256, so that a latent state is stored in bytes")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma={self.gamma!r}: give a discount above 0 and up to 1")

    @property
    def style(self) -> dict[str, str]:
        """``norm`` and ``activation`` of all layers"""
        return {"norm": self.norm, "activation": self.activation}

    def make_latent(self) -> Latent:
        """Build the family of stochastic states."""
        if self.latent == "gaussian":
            return GaussianLatent(self.stoch, self.std)
        return CategoricalLatent(self.stoch, self.classes, self.unimix)

    def make_cell(self, stoch: int, action: int) -> Cell:
        """
        Build the cell.

        :param stoch: the number of elements of a stochastic state
        :param action: the number of columns of an encoded action
        """
        if self.cell == "block_gru":
            return BlockGRUCell(self.deter, stoch, action, self.hidden, self.blocks)
        if self.cell == "layer_norm_gru":
            return LayerNormGRUCell(self.deter, stoch, action, self.hidden, **self.style)
        return GRUCell(self.deter, stoch, action, self.hidden, self.activation)

    def make_reward(self) -> Output:
        """Build the reward's output distribution."""
        if self.reward == "normal":
            return NormalOutput()
        return TwoHotOutput(self.bins, self.reward_range, in_symlog=self.reward == "twohot_symlog")

    @property
    def vector_output(self) -> Callable[[tuple[int, ...]], Output]:
        """The output distribution of continuous observations, from their shape"""
        return SymlogOutput if self.vectors == "symlog" else NormalOutput


MINIMA = dict.fromkeys(("deter", "hidden", "classes", "depth", "units", "stoch", "blocks"), 1)
MINIMA |= {"layers": 0, "head_layers": 0, "prior_layers": 0, "post_layers": 0, "bins": 3}
"""The smallest value of each whole number"""

MAXIMA = dict.fromkeys(("free_nats", "dynamics_scale", "representation_scale", "kl_scale"), math.inf)
MAXIMA |= dict.fromkeys(("vector_scale", "reward_scale", "continue_scale"), math.inf) | {"kl_balance": 1.0, "unimix": 1.0}
"""The largest value of each number that is not negative"""

MAX_REWARD_RANGE = 85.0
"""The largest range whose ``symexp`` is finite in single precision"""

ALLOWED_NAMES: dict[str, tuple[str, ...]] = {
    "latent": ("categorical", "gaussian"),
    "std": ("softplus", "sigmoid2"),
    "cell": ("block_gru", "layer_norm_gru", "gru"),
    "norm": ("rms", "layer", "none"),
    "activation": ("silu", "elu", "relu"),
    "kl": ("split", "balanced", "joint", "per_step"),
    "vectors": ("symlog", "normal"),
    "reward": ("twohot", "twohot_symlog", "normal"),
}
"""The allowed values of each setting that is a name"""


def make_settings(size: str, given: dict[str, Any]) -> Settings:
    """
    Build the settings of a size.

    :param size: one of :data:`SIZES`
    :param given: settings that replace those of the size and the defaults; ``None`` leaves them
    :raises ValueError: for an unknown size, or a setting out of range
    :raises TypeError: for an unknown setting
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}")
    names = [field.name for field in fields(Settings)]
    for name in given:
        if name not in names:
            raise TypeError(f"RSSM does not take {name!r}.{did_you_mean(name, names)}\n  It takes: {', '.join(names)}")
    return Settings(**{**SIZES[size], **{name: value for name, value in given.items() if value is not None}})
