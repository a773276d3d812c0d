"""``sb3-mbrl presets``: a table of all presets."""

import argparse

from sb3_mbrl.cli.values import UserError
from sb3_mbrl.hyperparams import load_preset, preset_algorithms, preset_names


def list_presets(args: argparse.Namespace) -> int:
    """Print the presets of one algorithm or of all."""
    algorithms = preset_algorithms()
    if args.algo is not None and args.algo not in algorithms:
        raise UserError(f"there are no presets of {args.algo!r}; there are some of {', '.join(algorithms)}")
    cells = [("algorithm", "preset", "real steps", "world model", "reward")]
    for algo in algorithms if args.algo is None else [args.algo]:
        for name in preset_names(algo):
            preset = load_preset(algo, name)
            steps = "" if preset.n_timesteps is None else f"{preset.n_timesteps:,}"
            reward = preset.kwargs.get("reward_fn")
            known = {None: "learned", "auto": "known, if it is"}.get(reward, str(reward))
            cells.append((algo, name, steps, str(preset.kwargs.get("world_model", "auto")), known))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for number, row in enumerate(cells):
        fitted = (
            cell.rjust(w) if column == 2 else cell.ljust(w) for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(fitted).rstrip())
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
    print("\nsb3-mbrl train --env ID takes the preset of this name by itself; --preset NAME takes another one.")
    return 0
