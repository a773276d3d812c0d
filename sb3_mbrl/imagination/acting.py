"""Acting in imagination: as the agent acts in the real environment, but with exploration drawn separately for every row."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic

from sb3_mbrl.rng import on_device
from sb3_mbrl.spaces import sample_actions
from sb3_mbrl.trees import batch_size


@contextmanager
def evaluating(module: th.nn.Module | None) -> Iterator[None]:
    """Put a module into evaluation mode, and back: batch normalisation then neither uses nor changes a batch's statistics."""
    if module is None or not module.training:
        yield
        return
    module.train(False)
    try:
        yield
    finally:
        module.train(True)


def act_in_imagination(
    agent: OffPolicyAlgorithm, obs: Any, generator: th.Generator | None, *, explores: bool = True
) -> th.Tensor:
    """
    Draw an action for every row, with the agent's exploration.

    With gSDE every row has its own exploration matrix, as every environment has. Agents with an ``exploration_rate`` (the DQN
    family) decide for every row whether to explore, where SB3's ``predict`` decides once for the whole batch. Deterministic
    actors get the agent's Gaussian action noise, if it has one. Other kinds of noise are correlated over the steps of an
    episode; imagined rows belong to no episode, so such noise is left out.

    :param agent: the agent
    :param obs: observations as the policy's networks take them
    :param generator: the source of exploration and noise
    :param explores: whether with random actions and action noise; ``False``: as the policy draws them
    :return: scaled actions ``(B, A)``, as SB3's replay buffer stores them
    """
    with _noise_per_row(agent, batch_size(obs)):
        action = agent.policy._predict(obs, deterministic=False)
    action = action.reshape(len(action), -1)
    if not explores:
        return action
    rate = getattr(agent, "exploration_rate", 0.0)
    if rate > 0.0:
        return explore(action, rate, agent.action_space, generator)
    noise = agent.action_noise
    if isinstance(noise, VectorizedActionNoise):
        noise = noise.noises[0]
    if not isinstance(noise, NormalActionNoise):
        return action
    draw = th.randn(action.shape, generator=on_device(generator, action.device), device=action.device)
    mean, std = (th.as_tensor(value, dtype=action.dtype, device=action.device) for value in (noise._mu, noise._sigma))
    return (action + mean + std * draw).clamp(-1.0, 1.0)


@contextmanager
def _noise_per_row(agent: OffPolicyAlgorithm, rows: int) -> Iterator[None]:
    """Give gSDE an exploration matrix for each of ``rows`` rows, and restore those of the real environments afterwards."""
    actor = getattr(agent.policy, "actor", None)
    noise = getattr(actor, "action_dist", None)
    if actor is None or not isinstance(noise, StateDependentNoiseDistribution):
        yield
        return
    kept = noise.exploration_mat, noise.exploration_matrices
    actor.reset_noise(rows)
    try:
        yield
    finally:
        noise.exploration_mat, noise.exploration_matrices = kept


def has_target_critics(agent: OffPolicyAlgorithm) -> bool:
    """Tell whether :func:`target_values` knows an agent's networks: an actor, and target critics as SAC, TD3 and DDPG have."""
    return isinstance(getattr(agent.policy, "critic_target", None), ContinuousCritic)


def target_values(agent: Any, obs: Any) -> th.Tensor:
    """
    Compute the values of observations under the policy, as the targets of SAC, TD3 and DDPG do, for each target critic apart:
    ``Q_c(s, a) - alpha log pi(a | s)`` in SAC, and ``Q_c(s, a)`` of the target actor's action with clipped noise in TD3.

    :param agent: the agent
    :param obs: observations as the policy's networks take them
    :return: ``(C, B)``
    """
    policy = agent.policy
    if hasattr(policy, "actor_target"):
        action, entropy = policy.actor_target(obs), None
        if agent.target_policy_noise > 0:
            noise = (th.randn_like(action) * agent.target_policy_noise).clamp(
                -agent.target_noise_clip, agent.target_noise_clip
            )
            action = (action + noise).clamp(-1.0, 1.0)
    else:
        action, log_prob = policy.actor.action_log_prob(obs)
        alpha = agent.ent_coef_tensor if agent.log_ent_coef is None else agent.log_ent_coef.exp()
        entropy = -alpha * log_prob
    values = th.stack(policy.critic_target(obs, action)).squeeze(-1)
    return values if entropy is None else values + entropy


def explore(action: th.Tensor, share: float, space: spaces.Space, generator: th.Generator | None) -> th.Tensor:
    """
    Replace some actions by uniformly random ones.

    :param action: ``(B, A)``
    :param share: the probability with which the action of a row is replaced
    :param space: the action space
    :param generator: the source of randomness
    """
    if share <= 0.0:
        return action
    other = sample_actions(space, len(action), generator, action.device).to(action.dtype)
    pick = th.rand(len(action), 1, generator=on_device(generator, action.device), device=action.device) < share
    return th.where(pick, other, action)
