"""``sb3-mbrl train --variants``: the same run with and without its world model, or with several models, and their results."""

import argparse
import copy
import re
from pathlib import Path

from sb3_mbrl.cli import train
from sb3_mbrl.cli.run_folder import new_folder
from sb3_mbrl.cli.values import DEFAULT_ALGORITHM, UserError

AS_GIVEN, MODEL_OFF = "model", "model-off"
"""The run as it is asked for, and its control: the same updates without a world model"""


def train_variants(args: argparse.Namespace) -> int:
    """Train once, or once per variant of ``--variants``, each in a folder of its name."""
    if not args.variants:
        return train.train(args)
    _check(args)
    algo = args.algo or DEFAULT_ALGORITHM
    folder = Path(args.output) if args.output else new_folder(algo, args.env)
    results = {}
    for name in args.variants:
        print(f"--- {name}")
        one = copy.deepcopy(args)
        one.output = str(folder / re.sub(r"[^\w.-]+", "-", name))
        if name != AS_GIVEN:
            one.world_model = "none" if name == MODEL_OFF else name
        code = train.train(one)
        if code != 0:
            return code
        results[name] = getattr(one, "result", "not evaluated (--eval-episodes 0)")
    print("--- results")
    width = max(len(name) for name in results)
    for name, result in results.items():
        print(f"{name:{width}}  {result}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.resume:
        raise UserError("--variants begins new runs: continue one of them with --resume --output DIR/VARIANT")
    if args.env is None:
        raise UserError("which environment? --env ID, e.g. --env Pendulum-v1")
    if len(set(args.variants)) < len(args.variants):
        raise UserError(f"--variants {' '.join(args.variants)}: name each once")
    if args.world_model is not None and args.variants != [AS_GIVEN]:
        raise UserError("--variants chooses the world models: leave --world-model out")
