"""``sb3-mbrl evaluate``: episodes with a saved agent."""

import argparse
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.cli.run_folder import check_spaces, load_saved
from sb3_mbrl.cli.values import UserError, make_env


def evaluate(args: argparse.Namespace) -> int:
    """Load an agent, play episodes and print its returns."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: give at least 1")
    saved = load_saved(args)
    print(play(saved.agent, saved.env_id, saved.env_kwargs, args.episodes, args.seed, not args.stochastic, args.render))
    return 0


def play(
    agent: OffPolicyAlgorithm,
    env_id: str,
    env_kwargs: dict[str, Any],
    episodes: int,
    seed: int,
    deterministic: bool = True,
    render: bool = False,
) -> str:
    """
    Play episodes.

    :param agent: the agent
    :param env_id: the Gymnasium id of the environment
    :param env_kwargs: the arguments of ``gymnasium.make``
    :param episodes: the number of episodes
    :param seed: the seed of the environment
    :param deterministic: whether the policy's mean is played, not a sample
    :param render: whether to show the environment in a window
    :return: a sentence with the mean, spread and range of the returns
    :raises UserError: for an environment whose spaces are not the agent's
    """
    env = make_vec_env(lambda: make_env(env_id, env_kwargs, render), seed=seed)
    check_spaces(agent, env, env_id)
    returns, lengths = evaluate_policy(
        agent, env, n_eval_episodes=episodes, deterministic=deterministic, return_episode_rewards=True
    )
    env.close()
    return (
        f"{env_id}, {episodes} episodes: mean return {np.mean(returns):.2f} ± {np.std(returns):.2f} (standard deviation), "
        f"from {np.min(returns):.2f} to {np.max(returns):.2f}, mean length {np.mean(lengths):.0f}"
    )
