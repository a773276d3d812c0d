"""What a run says of itself before it begins."""

import argparse
from pathlib import Path
from typing import Any

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.estimate import Costs, describe_pace, estimate
from sb3_mbrl.cli.run_folder import Run
from sb3_mbrl.cli.values import parse_pairs

EVALUATION_SEED = 10_000
"""The distance between the run's seed and that of its evaluation environment"""


def announce(args: argparse.Namespace, agent: Any, run: Run, folder: Path) -> None:
    """
    Print what is known, where the logs are, where evaluations start, and what the run will cost.

    :param args: the command's arguments
    :param agent: the agent
    :param run: the run's record
    :param folder: the folder of the run
    """
    if known := known_functions(agent, run, parse_pairs("--set", args.set)):
        print(known)
    if agent.get_vec_normalize_env() is not None:
        print("VecNormalize: on; its statistics are saved as vecnormalize.npz, and evaluations use them as they are")
    if run.tensorboard:
        print(f"TensorBoard: tensorboard --logdir {run.tensorboard}  (this run: {tensorboard_folder(run, folder)})")
    if args.eval_every:
        print(
            f"Evaluations: {args.eval_episodes} episodes every {args.eval_every:,} real steps, in an environment of their "
            f"own: the first begins at reset(seed={run.seed + EVALUATION_SEED}), each further one where that environment's "
            "next reset starts"
        )
    if not isinstance(agent, OffPolicyAgent):
        return
    if pace := describe_pace(agent):
        print(f"Updates: {pace}")
    if not args.no_progress:
        print("Measuring how long updates take here ...", flush=True)
    lines = (estimate(agent, run.steps, Costs()) if args.no_progress else agent.estimate(run.steps)).lines()
    print("\n  ".join(["Estimate:", *lines]), flush=True)


def known_functions(agent: Any, run: Run, given: dict[str, Any]) -> str:
    """
    Say which functions of the environment are known and therefore not learned; an empty string: none.

    :param agent: the agent
    :param run: the run's record, with the constructor's arguments
    :param given: those that ``--set`` gave; others are the preset's, or the algorithm's defaults
    """
    if getattr(agent, "world_model", None) is None:
        return ""
    parts, texts = agent.parts, []
    for name, what in (("reward_fn", "reward"), ("termination_fn", "termination")):
        if getattr(parts.known, name) is None:
            continue
        choice = getattr(agent, name)
        where = "--set" if name in given else "the preset's" if name in run.arguments else "the default"
        shown = f"{name}={choice!r}" if isinstance(choice, str) else name
        texts.append(f"the {what} is known and not learned ({where} {shown}; --set {name}=none learns it)")
    return f"Environment: {'; '.join(texts)}" if texts else ""


def tensorboard_folder(run: Run, folder: Path) -> Path:
    """The folder of a run's TensorBoard log."""
    assert run.tensorboard is not None  # asked for only where there is one
    return Path(run.tensorboard) / run.algo / folder.name
