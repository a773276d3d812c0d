"""What a planner may be told from outside: actions by a prior, the worth of last states by a value. SB3's, or functions."""

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
    A policy of SB3 as a function of the model's states, to scaled actions. It sees observations as the model decodes them: one
    that was trained behind ``VecNormalize`` has to be given as a function that normalises them.

    :raises TypeError: for what is neither a policy nor a function
    :raises ValueError: for a policy of other spaces; when it is called, for actions of another shape or kind
    """
    if prior is None:
        return None
    if isinstance(prior, BasePolicy):
        return _policy_prior(prior, model, deterministic)
    _refuse_agent("prior", prior, "policy")
    if not callable(prior):
        raise TypeError(f"prior={prior!r}: give a policy of SB3, or a function prior(state, generator) to scaled actions")
    size, numbers = ActionCodec(model.action_space).neutral().numel(), isinstance(model.action_space, spaces.Box)
    kind = "floats in [-1, 1]" if numbers else "integers"

    _check_arguments(prior)

    def act(state: State, generator: th.Generator | None = None) -> th.Tensor:
        # As a value does, it sees the states of the model itself.
        state = tree_map(lambda leaf: leaf[:, 0], state["particles"]) if isinstance(model, Particles) else state
        action, rows = prior(state, generator), batch_size(state)
        fits = isinstance(action, th.Tensor) and tuple(action.shape) == (rows, size)
        if not fits or action.is_floating_point() != numbers:
            raise ValueError(f"prior must return {kind} of the shape ({rows}, {size}), a row per state; got {_shown(action)}")
        return action

    return act


def _check_arguments(prior: Callable[..., Any]) -> None:
    try:
        inspect.signature(prior).bind(None, None)
    except TypeError as error:
        raise TypeError(f"prior must take (state, generator), as contract v2 says: {error}") from error
    except ValueError:  # written in C without a signature
        return


def _policy_prior(prior: BasePolicy, model: WorldModel, deterministic: bool) -> Prior:
    space = model.action_space
    if isinstance(prior, QNetwork) or _q_of(prior) is not None:
        raise TypeError(f"prior is a {type(prior).__name__}: give the policy that it belongs to, prior=agent.policy")
    _same_spaces("prior", prior, model)
    in_units = isinstance(space, spaces.Box) and not prior.squash_output
    codec = ActionCodec(space)

    def act(state: State, generator: th.Generator | None = None) -> th.Tensor:
        # Policies of SB3 draw from torch's global generators: inside the scope these continue the given stream.
        with nullcontext() if generator is None else RandomStream.of(generator).scope(model.device):
            action = prior._predict(model.decode(state), deterministic=deterministic)
        # Policies that do not squash (PPO's) speak in the environment's units.
        return codec.from_env(action.reshape(len(action), *shape)) if in_units else action.reshape(len(action), -1)

    shape: Any = space.shape
    return act


def as_value(value: Any, prior: BasePolicy | Prior | None, model: WorldModel) -> StateValue | None:
    """
    A critic of SB3 or sb3-contrib as a function of the model's states: of several critics the smallest, of quantiles the mean,
    of the values of all actions the largest. Of particles, the mean over those whose episode goes on.

    :raises TypeError: for what is neither a critic nor a function
    :raises ValueError: for a critic of other spaces, and for one of actions without a prior; when it is called, for values of
        another shape
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

    def judge(state: State) -> th.Tensor:
        worth, rows = value(state), batch_size(state)
        if not isinstance(worth, th.Tensor) or tuple(worth.shape) != (rows,) or not worth.is_floating_point():
            raise ValueError(f"value must return floats of the shape ({rows},), one per state; got {_shown(worth)}")
        return worth

    return judge


def _critic_value(critic: BaseModel, prior: BasePolicy | Prior | None, model: WorldModel) -> StateValue:
    _same_spaces("value", critic, model)
    if (of_all := _q_of(critic)) is not None:
        return lambda state: of_all(model.decode(state)).max(1).values
    if isinstance(critic, BasePolicy) or len(inspect.signature(critic.forward).parameters) != 2:
        raise TypeError(f"value is a {type(critic).__name__}, which judges nothing: give a critic, e.g. value=agent.critic")
    act = as_prior(prior, model, deterministic=True)
    if act is None:
        raise ValueError("A critic judges actions: give the policy that chooses them as prior=, e.g. prior=agent.policy")

    def judge(state: State) -> th.Tensor:
        found = critic(model.decode(state), act(state, None))
        # A column per critic (SAC, TD3, CrossQ), or all quantiles of each, (B, critics, quantiles) (TQC).
        by_critic = th.cat(found, dim=1) if isinstance(found, tuple) else found.mean(2)
        return by_critic.min(1).values

    return judge


def _q_of(module: Any) -> Callable[[Any], th.Tensor] | None:
    """Values of all actions, ``(B, n)``, of DQN's network or of QRDQN's; ``None`` for anything else."""
    if isinstance(module, QNetwork):
        return module
    if any(kind.__name__ == "QuantileNetwork" for kind in type(module).__mro__):  # sb3-contrib's need not be there
        return lambda obs: module(obs).mean(1)
    return None


def _refuse_agent(name: str, given: Any, part: str) -> None:
    if isinstance(given, BaseAlgorithm):
        raise TypeError(f"{name} is an agent ({type(given).__name__}): give a part of it, {name}=agent.{part}")


def _same_spaces(name: str, module: BaseModel, model: WorldModel) -> None:
    for which in ("observation_space", "action_space"):
        its, own = getattr(module, which), getattr(model, which)
        if its != own:
            raise ValueError(f"{name} was made for the {which} {its}, and the world model's is {own}: give one made for that")


def _shown(value: Any) -> str:
    return f"{value.dtype} of the shape {tuple(value.shape)}" if isinstance(value, th.Tensor) else type(value).__name__
