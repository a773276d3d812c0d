"""What is done with a saved agent: ``sb3-mbrl evaluate`` and ``sb3-mbrl plot``."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.cli import runs
from sb3_mbrl.cli.runs import MODEL, Run, algorithm, check_device, plugin_arguments
from sb3_mbrl.cli.values import UserError, load_plugins, make_env, parse_pairs
from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace
from sb3_mbrl.diagnostics.dream import check_same_spaces


def evaluate(args: argparse.Namespace) -> int:
    """Load an agent and play."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: give at least 1")
    agent, env_id, env_kwargs, _ = _saved(args)
    print(evaluation(agent, env_id, env_kwargs, args.episodes, args.seed, not args.stochastic, args.render))
    return 0


def _need_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('plot: Matplotlib is not installed. Run `pip install "sb3-mbrl[plots]"`.')


def plot_dream(args: argparse.Namespace) -> int:
    """Load an agent, play an episode, and show what its model makes of the actions alone."""
    _need_matplotlib()
    if args.fps < 1:
        raise UserError(f"--fps {args.fps}: give at least 1")
    from sb3_mbrl.diagnostics.dream import dream
    from sb3_mbrl.diagnostics.dream_plot import draw_dream

    agent, env_id, env_kwargs, folder = _saved(args)
    env = make_env(env_id, env_kwargs)
    _check_spaces(agent, env, env_id)
    path = Path(args.output) if args.output else folder / "dream.gif"
    try:
        found = dream(agent, env, context=args.context, horizon=args.horizon, seed=args.seed)
        path = draw_dream(found, path, title=env_id, fps=args.fps)
    except (ValueError, OSError, MissingCapability, UnsupportedSpace) as error:
        raise UserError(str(error)) from error
    finally:
        env.close()
    steps = len(found.real_reward) - found.context + 1
    real, imagined = (rewards[found.context - 1 :].sum() for rewards in (found.real_reward, found.imagined_reward))
    print(
        f"After {found.context} observations the model imagined {steps} more; they earned {real:.2f}, and {imagined:.2f} in it"
    )
    print(f"Picture: {path}")
    return 0


def plot_plan(args: argparse.Namespace) -> int:
    """Load an agent, play an episode, and draw what it expected of it."""
    _need_matplotlib()
    from sb3_mbrl.diagnostics.plan import coverage, roll_out_plans
    from sb3_mbrl.diagnostics.plan_plot import draw_plans

    agent, env_id, env_kwargs, folder = _saved(args)
    env = make_env(env_id, env_kwargs)
    _check_spaces(agent, env, env_id)
    try:
        found = roll_out_plans(
            agent,
            env,
            horizon=args.horizon,
            particles=args.particles,
            moments=args.moments,
            every=args.every,
            replan=args.replan,
            seed=args.seed,
        )
    except (ValueError, MissingCapability, UnsupportedSpace) as error:
        raise UserError(str(error)) from error
    finally:
        env.close()
    path = Path(args.output) if args.output else folder / "plan.png"
    try:
        path = draw_plans(found, agent.observation_space, path, title=f"{env_id}: expected and real", columns=args.columns)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    for one in found:
        expected = np.nanmean(np.nansum(one.imagined.reward[:, : len(one.reward)], axis=1))
        steps, earned = len(one.reward), one.reward.sum()
        print(f"step {one.step:4}: {steps} steps were expected to earn {expected:.2f}, and earned {earned:.2f}")
    if not args.replan:  # else it changed its mind, which is no error of the model
        print(f"Within the band of 90 % of the rollouts: {np.nanmean(coverage(found)):.0%} of what was observed")
    print(f"Picture: {path}")
    return 0


def _saved(args: argparse.Namespace) -> tuple[OffPolicyAlgorithm, str, dict[str, Any], Path]:
    """The agent, its environment's id and arguments, and the folder it lies in."""
    path = Path(args.model)
    if path.is_dir():
        path = path / MODEL
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_device(args.device)
    run = Run.read(path.parent)
    env_id = args.env or (run.env_id if run else None)
    if env_id is None:
        raise UserError(f"which environment? --env ID (there is no {runs.RECORD} beside {path})")
    plugins, registry = load_plugins(args.plugin or (run.plugins if run else None))
    cls = algorithm(registry, args.algo or (run.algo if run else None) or runs.saved_algorithm(registry, path) or "mbpo")
    agent = runs.load(cls, path, device=args.device, **plugin_arguments(plugins))
    of_run = run.env_kwargs if run and env_id == run.env_id else {}
    return agent, env_id, {**of_run, **parse_pairs("--env-kwargs", args.env_kwargs)}, path.parent


def evaluation(
    agent: OffPolicyAlgorithm,
    env_id: str,
    env_kwargs: dict[str, Any],
    episodes: int,
    seed: int,
    deterministic: bool = True,
    render: bool = False,
) -> str:
    """Play episodes; in words what they earned."""
    env = make_vec_env(lambda: make_env(env_id, env_kwargs, render), seed=seed)
    _check_spaces(agent, env, env_id)
    returns, lengths = evaluate_policy(
        agent, env, n_eval_episodes=episodes, deterministic=deterministic, return_episode_rewards=True
    )
    env.close()
    return (
        f"{env_id}, {episodes} episodes: mean return {np.mean(returns):.2f} ± {np.std(returns):.2f} (standard deviation), "
        f"from {np.min(returns):.2f} to {np.max(returns):.2f}, mean length {np.mean(lengths):.0f}"
    )


def _check_spaces(agent: OffPolicyAlgorithm, env: Any, env_id: str) -> None:
    try:
        check_same_spaces(agent, env, f"{env_id} with these arguments")
    except ValueError as error:
        raise UserError(str(error)) from error
