"""The policy of Dreamer: an actor and a critic on the features of a latent world model, and the state to act with."""

import copy
from typing import Any, NoReturn, TypedDict

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_mbrl.checks import number, whole
from sb3_mbrl.contracts import LatentModel, MissingCapability
from sb3_mbrl.models.rssm.settings import MAX_REWARD_RANGE
from sb3_mbrl.networks.actions import action_output
from sb3_mbrl.networks.heads import Head
from sb3_mbrl.networks.layers import MLP, Linear
from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.returns import ReturnScale
from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State, batch_size


class DreamerState(TypedDict):
    """The policy state from one decision to the next, one row per environment. It belongs to the caller of ``predict``."""

    latent: State
    """``(B, ...)``: the latent state after the last observation"""
    action: th.Tensor
    """``(B, A)``: the action taken then, scaled"""


class Actor(nn.Module):
    """
    :param features: columns of the world model's features
    :param action_space: any of SB3's
    :param units: of every layer
    :param layers: how many
    :param unimix: share of a uniform distribution in categorical actions
    :param scale: of the last layer's initial weights
    :param style: ``norm`` and ``activation`` of the layers
    """

    def __init__(
        self,
        features: int,
        action_space: spaces.Space,
        units: int,
        layers: int,
        unimix: float = 0.01,
        scale: float = 0.01,
        **style: str,
    ) -> None:
        super().__init__()
        self.output = action_output(action_space, unimix)
        self.body = MLP(features, units, layers, **style)
        self.out = Linear(self.body.outputs, self.output.size, scale=scale)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """The numbers of an action's distribution (:attr:`output`)."""
        return self.out(self.body(features)).float()


class DreamerPolicy(StatefulPolicy):
    """
    Actor and critic on a latent state that sees and remembers.

    SB3 builds it before there is a world model; the agent calls :meth:`attach`.

    :param units: of the layers of actor and critic (``None``: those of the world model's size)
    :param layers: of both
    :param unimix: share of a uniform distribution in categorical actions
    :param actor_scale: of the initial weights of the actor's last layer: nearly uniform at 0.01
    :param value_range: returns lie within ``symexp(±value_range)`` (``None``: as the world model's rewards)
    :param bins: of the critic's two-hot distribution (``None``: as many as the world model's rewards have)
    """

    actor: Actor
    critic: Head
    slow_critic: Head
    """Follows the critic slowly; not trained"""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any = None,
        *,
        units: int | None = None,
        layers: int = 3,
        unimix: float = 0.01,
        actor_scale: float = 0.01,
        value_range: float | None = None,
        bins: int | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=isinstance(action_space, spaces.Box))
        whole("layers", layers, 0)
        if units is not None:
            whole("units", units, 1)
        number("unimix", unimix, 0.0, 1.0)
        number("actor_scale", actor_scale, 0.0)
        if value_range is not None:
            number("value_range", value_range, 0.0, MAX_REWARD_RANGE, open_low=True)
        self.units, self.layers, self.unimix, self.actor_scale = units, layers, unimix, actor_scale
        self.value_range, self.bins = value_range, bins
        self.return_scale = ReturnScale()
        self._codec = ActionCodec(action_space)
        self.set_seed(None)

    def attach(self, world_model: LatentModel) -> None:
        """Build actor and critic on the features of a world model, and act in it from now on."""
        self._world_model = (world_model,)  # in a tuple: its weights are saved with it
        features, style = world_model.n_features, world_model.head_defaults()
        units = self.units or style["units"]
        del style["units"]
        own = {"reward_range": self.value_range, "bins": self.bins}
        value = world_model.value_output(**{name: given for name, given in own.items() if given is not None})
        self.actor = Actor(features, self.action_space, units, self.layers, self.unimix, self.actor_scale, **style)
        self.critic = Head(features, units, self.layers, value, **style)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(world_model.device)

    @property
    def world_model(self) -> LatentModel:
        """The agent's world model"""
        return self._world_model[0]

    def neutral_action(self, rows: int) -> th.Tensor:
        """``(rows, A)``: the action that is taken for granted before an episode begins."""
        return self._codec.neutral().to(self.world_model.device).expand(rows, -1)

    @th.no_grad()
    def act(
        self,
        obs: PyTorchObs,
        state: DreamerState | None,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        generator: th.Generator | None = None,
    ) -> DreamerState:
        """
        Filter the observation, and choose an action.

        :param obs: raw, ``(B, ...)``
        :param state: the policy state that the last call returned, or ``None``
        :param is_first: ``(B,)``: which rows begin an episode
        :param deterministic: the most likely state and action
        :param generator: the source of randomness; ``None``: the policy's own
        :return: the new policy state, with the chosen ``action``
        :raises ValueError: for the state of another number of environments
        """
        model, rows = self.world_model, batch_size(obs)
        generator = on_device(generator or self.generator, model.device)
        if state is None:
            is_first = th.ones_like(is_first)
        elif batch_size(state) != rows:
            raise ValueError(f"state is of {batch_size(state)} environments, and there are {rows} observations")
        latent = model.observe_step(
            None if state is None else state["latent"],
            self.neutral_action(rows) if state is None else state["action"],
            obs,
            is_first.to(model.device),
            generator=generator,
            deterministic=deterministic,
        )
        out = self.actor(model.features(latent))
        action = self.actor.output.mode(out) if deterministic else self.actor.output.sample(out, generator)
        if isinstance(self.action_space, spaces.Box):
            action = action.clamp(-1.0, 1.0)
        return {"latent": latent, "action": action}

    def save(self, path: Any) -> NoReturn:
        """Not supported: the policy needs the agent's world model. Save the agent instead."""
        raise NotImplementedError("DreamerPolicy acts in the agent's world model: save the agent (agent.save), and load that")

    def decide(
        self,
        obs: PyTorchObs,
        state: Any,
        is_first: th.Tensor,
        *,
        deterministic: bool = False,
        action_mask: th.Tensor | None = None,
    ) -> tuple[th.Tensor, DreamerState]:
        if action_mask is not None:
            raise MissingCapability("Dreamer's actor takes no action masks: leave out action_masks")
        new = self.act(obs, state, is_first, deterministic=deterministic)
        return new["action"], new
