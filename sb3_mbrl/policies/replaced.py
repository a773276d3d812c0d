"""Other networks in the place of SB3's plain ones, inside SB3's own actors and critics."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn

Make = Callable[[int, int], nn.Module]
"""A function from the numbers of inputs and outputs to a network"""


def replace_q_networks(critic: nn.Module, make: Make) -> None:
    """
    Replace the Q-networks of a critic of SAC or TD3; each keeps its numbers of inputs and outputs.

    :param critic: SB3's ``ContinuousCritic``
    """
    networks: Any = critic.q_networks
    for i, network in enumerate(networks):
        networks[i] = make(*sizes(network)).to(_device(network))
        setattr(critic, f"qf{i}", networks[i])  # under this name, SB3's critic has it registered


def replace_network(owner: nn.Module, name: str, make: Make) -> None:
    """
    Replace a network of a module; the new one keeps the numbers of inputs and outputs.

    :param owner: an actor, or a Q-network of DQN
    :param name: the attribute
    """
    network = getattr(owner, name)
    setattr(owner, name, make(*sizes(network)).to(_device(network)))


def sizes(network: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a network of linear layers."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return linear[0].in_features, linear[-1].out_features


def _device(network: nn.Module) -> th.device:
    return next(network.parameters()).device
