"""``sb3-mbrl evaluate``: episodes with a saved agent."""

import argparse
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.cli.masks import with_masks
from sb3_mbrl.cli.normalize import frozen
from sb3_mbrl.cli.progress import EpisodeProgress
from sb3_mbrl.cli.run_folder import check_spaces, load_saved
from sb3_mbrl.cli.values import UserError, make_env
from sb3_mbrl.envs.boards.base import TwoPlayerEnv
from sb3_mbrl.envs.boards.evaluation import play_games
from sb3_mbrl.envs.boards.players import AgentPlayer, RandomPlayer


def evaluate(args: argparse.Namespace) -> int:
    """Load an agent, play episodes and print its returns."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: give at least 1")
    saved = load_saved(args)
    how = {"deterministic": not args.stochastic, "render": args.render, "progress": not args.no_progress}
    print(play(saved.agent, saved.env_id, saved.env_kwargs, args.episodes, args.seed, **how))
    return 0


def play(
    agent: BaseAlgorithm,
    env_id: str,
    env_kwargs: dict[str, Any],
    episodes: int,
    seed: int,
    deterministic: bool = True,
    render: bool = False,
    progress: bool = True,
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
    :param progress: whether to show progress, on the error output
    :return: a sentence with the mean, spread and range of the returns, and the start states; for a game of two players, with
        the results of that many games from each seat against random moves
    :raises UserError: for an environment whose spaces are not the agent's
    """
    env: VecEnv = make_vec_env(lambda: make_env(env_id, env_kwargs, render), seed=seed)
    if of_two_players(env):
        return _play_games(agent, env_id, env_kwargs, episodes, seed, deterministic)
    statistics = agent.get_vec_normalize_env()
    if statistics is not None:
        env = frozen(env, statistics)
    check_spaces(agent, env, env_id)
    with EpisodeProgress(episodes, progress) as shown:
        returns, lengths = evaluate_policy(
            with_masks(agent, env),
            env,
            n_eval_episodes=episodes,
            deterministic=deterministic,
            return_episode_rewards=True,
            callback=shown,
        )
    env.close()
    return (
        f"{env_id}, {episodes} episodes: mean return {np.mean(returns):.2f} ± {np.std(returns):.2f} (standard deviation), "
        f"from {np.min(returns):.2f} to {np.max(returns):.2f}, mean length {np.mean(lengths):.0f}; start states: "
        f"reset(seed={seed}), and the resets that follow it"
    )


def of_two_players(env: VecEnv) -> bool:
    """Tell whether environments are games of two players."""
    envs: Any = getattr(env.unwrapped, "envs", None)
    return bool(envs) and isinstance(envs[0].unwrapped, TwoPlayerEnv)


def _play_games(
    agent: BaseAlgorithm, env_id: str, env_kwargs: dict[str, Any], games: int, seed: int, deterministic: bool
) -> str:
    """Play a game of two players against random moves: an agent that plays both seats itself always wins, and loses."""
    player = AgentPlayer(agent, deterministic=deterministic)
    score = play_games(player, RandomPlayer(), lambda: make_env(env_id, env_kwargs), repeats=games, seed=seed)
    return f"{env_id}, {games} games from each seat against random moves: {score}"
