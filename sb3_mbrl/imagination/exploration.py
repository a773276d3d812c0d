"""Exploration inside rollouts: what costs a real step in the real environment is free in a model."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.rng import on_device


def random_actions(space: spaces.Space, n: int, generator: th.Generator | None, device: th.device) -> th.Tensor:
    """
    :param space: ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :return: ``(n, A)``: uniform scaled numbers, or integers
    """
    generator = on_device(generator, device)
    if isinstance(space, spaces.Box):
        return 2.0 * th.rand(n, int(np.prod(space.shape)), generator=generator, device=device) - 1.0
    if isinstance(space, spaces.Discrete):
        counts, first = th.tensor([int(space.n)]), th.tensor([int(space.start)])
    elif isinstance(space, spaces.MultiDiscrete):
        counts, first = th.as_tensor(space.nvec).flatten(), th.as_tensor(space.start).flatten()
    elif isinstance(space, spaces.MultiBinary):
        counts, first = th.full((int(np.prod(space.shape)),), 2), th.zeros(1, dtype=th.long)
    else:
        raise TypeError(f"{space} is not an action space of Stable-Baselines3")
    uniform = th.rand(n, len(counts), generator=generator, device=device, dtype=th.float64)
    return (uniform * counts.to(device)).long() + first.to(device)


def explore(action: th.Tensor, share: float, space: spaces.Space, generator: th.Generator | None) -> th.Tensor:
    """
    Put a random action in the place of some.

    :param action: ``(B, A)``
    :param share: the probability of each row
    """
    if share <= 0.0:
        return action
    other = random_actions(space, len(action), generator, action.device).to(action.dtype)
    pick = th.rand(len(action), 1, generator=on_device(generator, action.device), device=action.device) < share
    return th.where(pick, other, action)
