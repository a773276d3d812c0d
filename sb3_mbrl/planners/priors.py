"""Prior policies and value functions for planners, from SB3's policies and critics or from functions."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.dqn.policies import QNetwork

from sb3_mbrl.contracts import WorldModel
from sb3_mbrl.models.particles import Particles
from sb3_mbrl.planners.rollout import Prior, StateValue
from sb3_mbrl.rng import RandomStream
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State, batch_size, tree_map


def as_prior(prior: BasePolicy | Prior | None, model: WorldModel, deterministic: bool = False) -> Prior | None:
    """
    Turn an SB3 policy into a function from the model's states to scaled actions, and check a function.

    A policy sees observations as the model decodes them: one that was trained behind ``VecNormalize`` has to be given as a
    function that normalises them. A function sees the model's states.

    :param prior: the policy or function; ``None`` is returned as it is
    :param model: the world model
    :param deterministic: whether an SB3 policy takes its most likely action
    :raises TypeError: for anything but a policy or a function
    :raises ValueError: for a policy with other spaces; when it is called, for actions of another shape or kind
    """
    if prior is None:
        return None
    if isinstance(prior, BasePolicy):
        return _policy_prior(prior, model, deterministic)
    _refuse_agent("prior", prior, "policy")
    if not callable(prior):
        raise TypeError(f"prior={prior!r}: give a policy of SB3, or a function from (state, generator) to scaled actions")
    size, numbers = ActionCodec(model.action_space).neutral().numel(), isinstance(model.action_space, spaces.Box)
    kind = "floats in [-1, 1]" if numbers else "integers"

    _check_arguments(prior)

    def act(state: State, generator: th.Generator | None = None) -> th.Tensor:
        # Like a value function, a prior sees states of the model itself: of particles, the first one.
        state = tree_map(lambda leaf: leaf[:, 0], state["particles"]) if isinstance(model, Particles) else state
        action, rows = prior(state, generator), batch_size(state)
        fits = isinstance(action, th.Tensor) and tuple(action.shape) == (rows, size)
        if not fits or action.is_floating_point() != numbers:
            raise ValueError(f"prior must return {kind} of the shape ({rows}, {size}), a row per state; got {_shown(action)}")
        return action

    return act


def _check_arguments(prior: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called as ``prior(state, generator)``."""
    try:
        inspect.signature(prior).bind(None, None)
    except TypeError as error:
        raise TypeError(f"prior must take (state, generator), as contract v2 says: {error}") from error
    except ValueError:  # functions written in C may have no signature
        return


def _policy_prior(prior: BasePolicy, model: WorldModel, deterministic: bool) -> Prior:
    """Turn an SB3 policy into a function of the model's states."""
    space = model.action_space
    if isinstance(prior, QNetwork) or _action_values(prior) is not None:
        raise TypeError(f"prior is a {type(prior).__name__}: give the policy that it belongs to, prior=agent.policy")
    _same_spaces("prior", prior, model)
    in_units = isinstance(space, spaces.Box) and not prior.squash_output
    codec = ActionCodec(space)

    def act(state: State, generator: th.Generator | None = None) -> th.Tensor:
        # Policies of SB3 draw from torch's global generators; inside the scope these continue the given stream.
        with nullcontext() if generator is None else RandomStream.of(generator).scope(model.device):
            action = prior._predict(model.decode(state), deterministic=deterministic)
        # Policies that do not squash their actions (PPO's) return them in the environment's units.
        return codec.from_env(action.reshape(len(action), *shape)) if in_units else action.reshape(len(action), -1)

    shape: Any = space.shape
    return act


def as_value(value: Any, prior: BasePolicy | Prior | None, model: WorldModel) -> StateValue | None:
    """
    Turn a critic of SB3 or sb3-contrib into a function from the model's states to values, and check a function.

    The value of a state is the smallest of several critics, the mean of quantiles, and the largest of the values of all
    actions. The value of particles is the mean over those whose episode has not ended.

    :param value: the critic or function; ``None`` is returned as it is
    :param prior: the policy that chooses the action for a critic of actions
    :param model: the world model
    :raises TypeError: for anything but a critic or a function
    :raises ValueError: for a critic with other spaces, and for a critic of actions without a prior; when it is called, for
        values of another shape
    """
    if isinstance(model, Particles):
        inner = as_value(value, prior, model.model)
        return None if inner is None else lambda state: model.mean_value(state, inner)
    if value is None:
        return None
    _refuse_agent("value", value, "critic")
    if isinstance(value, BaseModel):
        return _critic_value(value, prior, model)
    if not callable(value):
        raise TypeError(f"value={value!r}: give a critic of SB3, or a function from states to their values")

    def state_value(state: State) -> th.Tensor:
        values, rows = value(state), batch_size(state)
        if not isinstance(values, th.Tensor) or tuple(values.shape) != (rows,) or not values.is_floating_point():
            raise ValueError(f"value must return floats of the shape ({rows},), one per state; got {_shown(values)}")
        return values

    return state_value


def _critic_value(critic: BaseModel, prior: BasePolicy | Prior | None, model: WorldModel) -> StateValue:
    """Turn a critic into a function of the model's states."""
    _same_spaces("value", critic, model)
    if (values_of := _action_values(critic)) is not None:
        return lambda state: values_of(model.decode(state)).max(1).values
    if isinstance(critic, BasePolicy) or len(inspect.signature(critic.forward).parameters) != 2:
        raise TypeError(f"value is a {type(critic).__name__}, which is not a critic: give one, e.g. value=agent.critic")
    act = as_prior(prior, model, deterministic=True)
    if act is None:
        raise ValueError("The critic is one of actions: give the policy that chooses them as prior=, e.g. prior=agent.policy")

    def state_value(state: State) -> th.Tensor:
        values = critic(model.decode(state), act(state, None))
        # SAC, TD3 and CrossQ return a tuple with a column per critic, TQC all quantiles of each, (B, critics, quantiles).
        by_critic = th.cat(values, dim=1) if isinstance(values, tuple) else values.mean(2)
        return by_critic.min(1).values

    return state_value


def _action_values(module: Any) -> Callable[[Any], th.Tensor] | None:
    """Return the function of the values of all actions, ``(B, n)``, of DQN's or QRDQN's network; ``None`` for others."""
    if isinstance(module, QNetwork):
        return module
    if any(kind.__name__ == "QuantileNetwork" for kind in type(module).__mro__):  # sb3-contrib may not be installed
        return lambda obs: module(obs).mean(1)
    return None


def _refuse_agent(name: str, given: Any, part: str) -> None:
    """Refuse an agent where a part of it is expected."""
    if isinstance(given, BaseAlgorithm):
        raise TypeError(f"{name} is an agent ({type(given).__name__}): give a part of it, {name}=agent.{part}")


def _same_spaces(name: str, module: BaseModel, model: WorldModel) -> None:
    """Refuse a policy or critic whose spaces are not the model's."""
    for which in ("observation_space", "action_space"):
        its, own = getattr(module, which), getattr(model, which)
        if its != own:
            raise ValueError(f"{name} was made for the {which} {its}, and the world model's is {own}: give one made for that")


def _shown(value: Any) -> str:
    """Describe a value for a message."""
    return f"{value.dtype} of the shape {tuple(value.shape)}" if isinstance(value, th.Tensor) else type(value).__name__
