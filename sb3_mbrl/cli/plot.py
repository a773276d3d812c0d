"""``sb3-mbrl plot plan`` and ``sb3-mbrl plot dream``: images of what a saved agent expects."""

import argparse
import importlib.util
from pathlib import Path

import numpy as np

from sb3_mbrl.cli.progress import EpisodeProgress
from sb3_mbrl.cli.run_folder import check_spaces, load_saved
from sb3_mbrl.cli.values import UserError, make_env
from sb3_mbrl.contracts import MissingCapability, UnsupportedSpace


def plot_dream(args: argparse.Namespace) -> int:
    """Load an agent, play an episode, and show what its model predicts from the actions alone."""
    _need_matplotlib()
    if args.fps < 1:
        raise UserError(f"--fps {args.fps}: give at least 1")
    from sb3_mbrl.diagnostics.dream import dream
    from sb3_mbrl.diagnostics.dream_plot import draw_dream

    saved = load_saved(args)
    env = make_env(saved.env_id, saved.env_kwargs)
    check_spaces(saved.agent, env, saved.env_id)
    path = Path(args.output) if args.output else saved.folder / "dream.gif"
    try:
        how = {"context": args.context, "horizon": args.horizon, "seed": args.seed}
        with EpisodeProgress(1, not args.no_progress) as shown:
            episode = dream(saved.agent, env, **how, on_step=shown.step)
        path = draw_dream(episode, path, title=saved.env_id, fps=args.fps)
    except (ValueError, OSError, MissingCapability, UnsupportedSpace) as error:
        raise UserError(str(error)) from error
    finally:
        env.close()
    # Reward t belongs to the step from observation t to t + 1, so reward context - 1 is the first imagined one.
    first = episode.context - 1
    steps = len(episode.real_reward) - first
    real, imagined = (rewards[first:].sum() for rewards in (episode.real_reward, episode.imagined_reward))
    print(
        f"After {episode.context} observations the model imagined {steps} more. Return of these steps: {real:.2f} real, "
        f"{imagined:.2f} imagined"
    )
    print(f"Image: {path}")
    return 0


def plot_plan(args: argparse.Namespace) -> int:
    """Load an agent, play an episode, and draw what the agent expected against what happened."""
    _need_matplotlib()
    from sb3_mbrl.diagnostics.plan import coverage, roll_out_plans
    from sb3_mbrl.diagnostics.plan_plot import draw_plans

    saved = load_saved(args)
    env = make_env(saved.env_id, saved.env_kwargs)
    check_spaces(saved.agent, env, saved.env_id)
    try:
        with EpisodeProgress(1, not args.no_progress) as shown:
            moments = roll_out_plans(
                saved.agent,
                env,
                horizon=args.horizon,
                particles=args.particles,
                moments=args.moments,
                every=args.every,
                replan=args.replan,
                seed=args.seed,
                on_step=shown.step,
            )
    except (ValueError, MissingCapability, UnsupportedSpace) as error:
        raise UserError(str(error)) from error
    finally:
        env.close()
    path = Path(args.output) if args.output else saved.folder / "plan.png"
    title = f"{saved.env_id}: expected and real"
    try:
        path = draw_plans(moments, saved.agent.observation_space, path, title=title, columns=args.columns)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    for moment in moments:
        # The mean over rollouts of their returns. Rewards are NaN after a rollout has ended, hence nansum; the real episode
        # may have ended before the horizon, hence the slice.
        expected = np.nanmean(np.nansum(moment.imagined.reward[:, : len(moment.reward)], axis=1))
        steps, earned = len(moment.reward), moment.reward.sum()
        print(f"step {moment.step:4}: {steps} steps were expected to earn {expected:.2f}, and earned {earned:.2f}")
    if not args.replan:  # a planner that changed its plan leaves the band without any error of the model
        print(f"Within the band of 90 % of the rollouts: {np.nanmean(coverage(moments)):.0%} of what was observed")
    print(f"Image: {path}")
    return 0


def _need_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('plot: Matplotlib is not installed. Run `pip install "sb3-mbrl[plots]"`.')
