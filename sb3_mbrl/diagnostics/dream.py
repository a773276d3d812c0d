"""Open-loop prediction: a world model sees the beginning of an episode, and then only what is done in the rest of it."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.contracts import Obs, WorldModel
from sb3_mbrl.spaces import ActionCodec, as_stored, channels_first
from sb3_mbrl.trees import State, tree_cat


class EpisodeTooShortError(ValueError):
    """It was over before the model had seen what it is to see."""


class Dream(NamedTuple):
    """``T`` moments of one episode, as they were and as the model has them."""

    real: dict[str, np.ndarray]
    """By key (``"obs"`` where the observation is no dictionary), ``(T, ...)``; images channels first"""
    imagined: dict[str, np.ndarray]
    """Likewise; the first ``context`` are what the model makes of what it sees"""
    real_reward: np.ndarray
    """``(T - 1,)``: of the step to each moment but the first"""
    imagined_reward: np.ndarray
    """``(T - 1,)``; NaN while the model sees"""
    context: int
    """How many moments the model sees"""


def check_same_kind(agent: OffPolicyAlgorithm, env: gym.Env, name: str = "such an environment") -> None:
    """
    :param name: of the environment
    :raises ValueError: for an environment of other spaces than those that the agent was trained in
    """
    seen = channels_first(env.observation_space), env.action_space
    for what, own, other in zip(("observations", "actions"), (agent.observation_space, agent.action_space), seen, strict=True):
        if own != other:
            raise ValueError(f"the agent was not trained in {name}: its {what} are {own}, and here they are {other}")


def dream(agent: OffPolicyAlgorithm, env: gym.Env, *, context: int = 5, horizon: int = 45, seed: int = 0) -> Dream:
    """
    Play one episode. The model filters the first ``context`` observations, and then predicts from the actions alone.

    :param agent: with a fitted world model that decodes observations
    :param env: one environment of the kind that the agent was trained in; reset here, and stepped
    :param context: observations that are seen
    :param horizon: observations that are imagined; fewer where the episode ends before
    :param seed: of the environment
    :raises ValueError: for an agent without a fitted world model, or numbers below 1
    :raises EpisodeTooShortError: for an episode that ends too soon
    :raises MissingCapability: for a model that does not decode observations
    """
    model: WorldModel | None = getattr(agent, "world_model", None)
    if model is None:
        raise ValueError(f"{type(agent).__name__} has no world model, so there is nothing that it dreams of")
    if not model.fitted:
        raise ValueError("the world model has not been fitted yet: train the agent for longer than learning_starts")
    if model.needs_snapshot:
        raise ValueError(f"{type(model).__name__} is the true environment: there is nothing to compare")
    for name, value in (("context", context), ("horizon", horizon)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    real, actions, rewards = _play(agent, env, context + horizon - 1, seed)
    if len(actions) < context:
        raise EpisodeTooShortError(
            f"the episode was over after {len(actions)} steps, and the model is to see {context} observations"
        )
    was_training = model.training
    model.eval()
    try:
        imagined, expected = _follow(model, real, actions, context)
    finally:
        model.train(was_training)
    return Dream(_keyed(tree_cat(real)), _keyed(tree_cat(imagined)), np.asarray(rewards), np.asarray(expected), context)


def _play(agent: Any, env: gym.Env, steps: int, seed: int) -> tuple[list[Obs], list[th.Tensor], list[float]]:
    """Observations as the model takes them (one more than steps), scaled actions, rewards."""
    codec, normalising = ActionCodec(agent.action_space), agent.get_vec_normalize_env()
    obs, _ = env.reset(seed=seed)
    seen, memory, first, done = [_rows(agent, obs)], None, np.array([True]), False
    actions: list[th.Tensor] = []
    rewards: list[float] = []
    while not done and len(actions) < steps:
        shown = obs if normalising is None else normalising.normalize_obs(obs)
        action, memory = agent.predict(shown, memory, first, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        actions.append(codec.from_env(th.as_tensor(np.asarray(action), device=agent.device)[None]))
        rewards.append(float(reward))
        seen.append(_rows(agent, obs))
        first, done = np.array([False]), terminated or truncated
    return seen, actions, rewards


@th.no_grad()
def _follow(model: WorldModel, real: list[Obs], actions: list[th.Tensor], context: int) -> tuple[list[Obs], list[float]]:
    state: State = model.initial(real[0])
    found, rewards = [model.decode(state)], []
    for t, action in enumerate(actions):
        if t + 1 < context:
            state = model.observe(state, action, real[t + 1], th.tensor([False], device=model.device))
            rewards.append(float("nan"))
        else:
            prediction = model.step(state, action, deterministic=True)
            state = prediction.state
            rewards.append(float(prediction.reward))
        found.append(model.decode(state))
    return found, rewards


def _rows(agent: Any, obs: Any) -> Obs:
    """A batch of one, as the replay buffer has it."""
    return as_stored(agent.policy.obs_to_tensor(obs)[0])


def _keyed(obs: Obs) -> dict[str, np.ndarray]:
    found: dict[str, Any] = dict(obs) if isinstance(obs, dict) else {"obs": obs}
    return {key: value.cpu().numpy() for key, value in found.items()}
