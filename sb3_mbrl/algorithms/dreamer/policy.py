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
    """
    The policy state between two decisions, one row per environment. It belongs to the caller of ``predict``.

    :param latent: the latent state after the last observation, ``(B, ...)``
    :param action: the action taken after it, ``(B, A)``, scaled
    """

    latent: State
    action: th.Tensor


class Actor(nn.Module):
    """
    An actor: a network from the features of latent states to a distribution of actions.

    :param features: the number of columns of the world model's features
    :param action_space: any action space of SB3
    :param units: the number of units in every layer
    :param layers: the number of layers
    :param unimix: the share of a uniform distribution in categorical actions
    :param scale: the scale of the last layer's initial weights
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
        """Compute the parameters of the distribution of actions (:attr:`output`)."""
        return self.out(self.body(features)).float()


class DreamerPolicy(StatefulPolicy):
    """
    A policy of an actor and a critic on the latent state of a world model.

    SB3 builds it before there is a world model; the agent calls :meth:`attach`.

    :param observation_space: the observation space
    :param action_space: the action space
    :param lr_schedule: not used
    :param units: the number of units in the layers of actor and critic (``None``: the default of the world model's size)
    :param layers: the number of layers of actor and critic
    :param unimix: the share of a uniform distribution in categorical actions
    :param actor_scale: the scale of the initial weights of the actor's last layer: nearly uniform actions at 0.01
    :param value_range: the range of returns, ``symexp(±value_range)`` (``None``: that of the world model's rewards)
    :param bins: the number of bins of the critic's two-hot distribution (``None``: that of the world model's rewards)
    """

    actor: Actor
    critic: Head
    slow_critic: Head
    """A copy that follows the critic slowly; not trained"""

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
        # In a tuple, so that torch does not register it as a part of the policy: its weights are saved with the model.
        self._world_model = (world_model,)
        features, style = world_model.n_features, world_model.head_defaults()
        units = self.units or style["units"]
        del style["units"]
        settings = {"reward_range": self.value_range, "bins": self.bins}
        value = world_model.value_output(**{name: given for name, given in settings.items() if given is not None})
        self.actor = Actor(features, self.action_space, units, self.layers, self.unimix, self.actor_scale, **style)
        self.critic = Head(features, units, self.layers, value, **style)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(world_model.device)

    @property
    def world_model(self) -> LatentModel:
        """The agent's world model"""
        return self._world_model[0]

    def neutral_action(self, rows: int) -> th.Tensor:
        """Return the action that is assumed before an episode begins, ``(rows, A)``."""
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

        :param obs: raw observations, ``(B, ...)``
        :param state: the policy state of the last call, or ``None``
        :param is_first: ``(B,)`` booleans: rows that begin an episode
        :param deterministic: whether to take the most likely state and action instead of samples
        :param generator: the source of randomness; ``None``: the policy's own
        :return: the new policy state, with the chosen ``action``
        :raises ValueError: when the state is of another number of environments
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
