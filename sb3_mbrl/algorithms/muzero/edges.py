"""The edges of a search tree: all actions of a Discrete space, or actions that were sampled from the policy."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.networks.actions import ActionOutput
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import State


class Edges(ABC):
    """
    The actions that the edges out of a node stand for.

    :param n: the number of edges of a node
    """

    def __init__(self, n: int) -> None:
        self.n = n

    @abstractmethod
    def out_of(self, latent: th.Tensor, policy: th.Tensor, generator: th.Generator | None) -> tuple[State, th.Tensor]:
        """
        Give nodes their edges.

        :param latent: the latent states of the nodes, ``(B, L)``
        :param policy: the parameters of their policies, ``(B, size)``
        :param generator: the source of randomness
        :return: the state of the nodes in the tree, and the prior logits of their edges ``(B, n)``
        """

    @abstractmethod
    def actions(self, state: State, edge: th.Tensor) -> th.Tensor:
        """Return the scaled actions ``(B, A)`` of edges ``(B,)`` out of nodes."""

    def stored(self, state: State) -> np.ndarray | None:
        """Return the drawn actions to store with a search, ``(B, n, A)``; ``None`` where edges are the same in all nodes."""
        return None


class AllActions(Edges):
    """
    One edge per action of a ``Discrete`` space.

    :param space: the action space
    """

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__(int(space.n))
        self.start = int(space.start)

    def out_of(self, latent: th.Tensor, policy: th.Tensor, generator: th.Generator | None) -> tuple[State, th.Tensor]:
        return {"latent": latent}, policy

    def actions(self, state: State, edge: th.Tensor) -> th.Tensor:
        return edge[:, None] + self.start


class SampledActions(Edges):
    """
    Edges with actions that are drawn from the policy of the node (Hubert et al. 2021, Sampled MuZero).

    With the share ``uniform`` of them drawn uniformly, ``beta = (1 - uniform) pi + uniform / volume`` is the distribution that
    actions are drawn from, and the prior of an action is ``pi / beta`` (its equation 5, with one draw per edge), so that it is
    the policy that is improved and not the way of sampling. Without a preference of the search, the policy stays as it is.

    Draws beyond the bounds of a ``Box`` are kept as they were drawn, since they have the density of the policy there; what is
    taken is the nearest action.

    :param space: ``Box``, ``MultiDiscrete`` or ``MultiBinary``
    :param output: the distribution of the policy
    :param n: the number of edges
    :param uniform: the share of actions that are drawn uniformly
    """

    def __init__(self, space: spaces.Space, output: ActionOutput, n: int, uniform: float = 0.25) -> None:
        super().__init__(n)
        self.space, self.output, self.n_uniform = space, output, min(n - 1, round(n * uniform))
        # The density of a uniform draw: scaled Box actions lie in [-1, 1]^A; other spaces are finite.
        if isinstance(space, spaces.Box):
            self.log_uniform = -float(np.log(2.0) * np.prod(space.shape))
        elif isinstance(space, spaces.MultiDiscrete):
            self.log_uniform = -float(np.log(space.nvec).sum())
        else:
            self.log_uniform = -float(np.log(2.0) * np.prod(space.shape or (1,)))

    def out_of(self, latent: th.Tensor, policy: th.Tensor, generator: th.Generator | None) -> tuple[State, th.Tensor]:
        rows, own = len(latent), self.n - self.n_uniform
        wide = policy[:, None].expand(rows, self.n, policy.shape[-1])
        drawn = self.output.sample(wide[:, :own], generator)
        uniform = sample_actions(self.space, rows * self.n_uniform, generator, latent.device)
        action = th.cat([drawn, uniform.view(rows, self.n_uniform, drawn.shape[-1]).to(drawn)], 1)
        log_policy, share = self.output.log_prob(wide, action), self.n_uniform / self.n
        log_uniform = th.full_like(log_policy, math.log(max(share, 1e-12)) + self.log_uniform)
        if isinstance(self.space, spaces.Box):
            log_uniform = log_uniform.masked_fill((action.abs() > 1.0).any(-1), -th.inf)
        log_beta = th.logaddexp(log_policy + math.log(1 - share), log_uniform)
        return {"latent": latent, "action": action}, log_policy - log_beta

    def actions(self, state: State, edge: th.Tensor) -> th.Tensor:
        drawn: Any = state["action"]
        return self.taken(drawn[th.arange(len(edge), device=drawn.device), edge])

    def taken(self, drawn: th.Tensor) -> th.Tensor:
        """Return the actions that are taken for drawn ones, ``(..., A)``: the nearest ones within the bounds."""
        return drawn.clamp(-1.0, 1.0) if isinstance(self.space, spaces.Box) else drawn

    def stored(self, state: State) -> np.ndarray | None:
        action: Any = state["action"]
        return action.cpu().numpy()


def edges_of(space: spaces.Space, output: ActionOutput, n_sampled: int) -> Edges:
    """Choose the edges for an action space."""
    return AllActions(space) if isinstance(space, spaces.Discrete) else SampledActions(space, output, n_sampled)
