"""Open-loop prediction: a world model sees the beginning of an episode, and predicts the rest from the actions alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.contracts import Obs, WorldModel
from sb3_mbrl.spaces import ActionCodec, as_stored, channels_first
from sb3_mbrl.trees import State, tree_cat


class EpisodeTooShortError(ValueError):
    """Raised when an episode ends before the model has seen its context."""


class Dream(NamedTuple):
    """``T`` observations of one episode, real and imagined."""

    real: dict[str, np.ndarray]
    """The real observations by key (``"obs"`` if the observation is not a dictionary), ``(T, ...)``; images channels first"""
    imagined: dict[str, np.ndarray]
    """The imagined ones, likewise; the first ``context`` are reconstructions of observations that the model has seen"""
    real_reward: np.ndarray
    """``(T - 1,)``: the reward of the step to each observation but the first"""
    imagined_reward: np.ndarray
    """``(T - 1,)``; NaN within the context"""
    context: int
    """The number of observations that the model sees"""


def check_same_spaces(agent: OffPolicyAlgorithm, env: gym.Env, name: str = "such an environment") -> None:
    """
    Check that an environment has the spaces that an agent was trained with.

    :param agent: the agent
    :param env: the environment
    :param name: the environment's name, for the message
    :raises ValueError: for other spaces
    """
    for what, trained, given in (
        ("observations", agent.observation_space, channels_first(env.observation_space)),
        ("actions", agent.action_space, env.action_space),
    ):
        if trained != given:
            raise ValueError(f"the agent was not trained in {name}: its {what} are {trained}, and here they are {given}")


def dream(
    agent: OffPolicyAlgorithm,
    env: gym.Env,
    *,
    context: int = 5,
    horizon: int = 45,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> Dream:
    """
    Play one episode. The model filters the first ``context`` observations, and then predicts from the actions alone.

    :param agent: an agent with a fitted world model that decodes observations
    :param env: one environment of the kind that the agent was trained in; it is reset and stepped
    :param context: the number of observations that the model sees
    :param horizon: the number of observations that it imagines; fewer if the episode ends earlier
    :param seed: the seed of the environment
    :param on_step: a function that is called after every step, to show progress
    :raises ValueError: for an agent without a fitted world model, or numbers below 1
    :raises EpisodeTooShortError: if the episode ends within the context
    :raises MissingCapability: for a model that does not decode observations
    """
    model: WorldModel | None = getattr(agent, "world_model", None)
    if model is None:
        raise ValueError(f"{type(agent).__name__} has no world model to dream with: give an agent with one, such as MBPO")
    if not model.fitted:
        raise ValueError("the world model has not been fitted yet: train the agent for longer than learning_starts")
    if model.needs_snapshot:
        raise ValueError(f"{type(model).__name__} is the true environment: there is nothing to compare")
    for name, value in (("context", context), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    real, actions, rewards = _play(agent, env, context + horizon - 1, seed, on_step)
    if len(actions) < context:
        raise EpisodeTooShortError(
            f"the episode was over after {len(actions)} steps, and the model is to see {context} observations"
        )
    was_training = model.training
    model.eval()
    try:
        imagined, expected = _predict(model, real, actions, context)
    finally:
        model.train(was_training)
    return Dream(_by_key(tree_cat(real)), _by_key(tree_cat(imagined)), np.asarray(rewards), np.asarray(expected), context)


def _play(
    agent: Any, env: gym.Env, steps: int, seed: int, on_step: Callable[[], None] | None
) -> tuple[list[Obs], list[th.Tensor], list[float]]:
    """Play an episode; return observations as the model takes them (one more than steps), scaled actions and rewards."""
    codec, vec_normalize = ActionCodec(agent.action_space), agent.get_vec_normalize_env()
    obs, _ = env.reset(seed=seed)
    observations, state, first, done = [_batch_of_one(agent, obs)], None, np.array([True]), False
    actions: list[th.Tensor] = []
    rewards: list[float] = []
    while not done and len(actions) < steps:
        policy_obs = obs if vec_normalize is None else vec_normalize.normalize_obs(obs)
        action, state = agent.predict(policy_obs, state, first, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        actions.append(codec.from_env(th.as_tensor(np.asarray(action), device=agent.device)[None]))
        rewards.append(float(reward))
        observations.append(_batch_of_one(agent, obs))
        first, done = np.array([False]), terminated or truncated
        if on_step is not None:
            on_step()
    return observations, actions, rewards


@th.no_grad()
def _predict(model: WorldModel, real: list[Obs], actions: list[th.Tensor], context: int) -> tuple[list[Obs], list[float]]:
    """Filter the context, then predict the rest; return decoded observations and rewards."""
    state: State = model.initial(real[0])
    imagined, rewards = [model.decode(state)], []
    for t, action in enumerate(actions):
        if t + 1 < context:
            state = model.observe(state, action, real[t + 1], th.tensor([False], device=model.device))
            rewards.append(float("nan"))
        else:
            prediction = model.step(state, action, deterministic=True)
            state = prediction.state
            rewards.append(float(prediction.reward))
        imagined.append(model.decode(state))
    return imagined, rewards


def _batch_of_one(agent: Any, obs: Any) -> Obs:
    """Convert one observation to a batch in the layout of the replay buffer."""
    return as_stored(agent.policy.obs_to_tensor(obs)[0])


def _by_key(obs: Obs) -> dict[str, np.ndarray]:
    leaves: dict[str, Any] = dict(obs) if isinstance(obs, dict) else {"obs": obs}
    return {key: value.cpu().numpy() for key, value in leaves.items()}
