"""Pictures, with Matplotlib (the ``plots`` extra)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mbrl.diagnostics.plan import Foresight
from sb3_mbrl.spaces import SpaceCodec

_MOST_PANELS = 6
_ABOVE: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
_IMAGINED, _REAL = "tab:blue", "black"


def draw_plans(
    found: Sequence[Foresight],
    observation_space: spaces.Space,
    path: Path | str,
    *,
    title: str,
    columns: Sequence[int] | None = None,
) -> Path:
    """
    One panel per column of the observation and one for the reward: every imagined trajectory, the band that holds 90 % of
    them, and what then really happened.

    :param found: of :func:`~sb3_mbrl.diagnostics.plan.foresee`
    :param observation_space: the environment's
    :param path: of the picture; its suffix decides the format (none: png); in a folder that exists it is ``plan.png``
    :param title: of the picture
    :param columns: which of the encoded observation (default: all, at most the six that vary most for their size)
    :return: where the picture is
    :raises ValueError: for a column that there is not, or nothing to draw
    """
    if not found:
        raise ValueError("there is nothing to draw: the episode had no step")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = SpaceCodec(observation_space).names
    chosen = _most_moving(found) if columns is None else list(columns)
    if wrong := [column for column in chosen if not 0 <= column < len(names)]:
        raise ValueError(f"columns={wrong}: there are the columns 0 to {len(names) - 1}")
    panels = [(names[column], _column(found, column)) for column in chosen]
    panels.append(("reward", [(one.step, one.imagined.reward, one.reward, 1) for one in found]))
    figure = Figure(figsize=(9, 1.2 + 1.7 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, parts) in zip(axes, panels, strict=True):
        for step, imagined, real, first in parts:
            _draw_fan(axis, step + first + np.arange(imagined.shape[1]), imagined)
            axis.plot(step + first + np.arange(len(real)), real, color=_REAL, lw=1.6)
            axis.axvline(step, color="tab:grey", lw=0.6, ls=":")
        axis.set_ylabel(name)
    axes[-1].set_xlabel("step of the episode")
    handles = [*axes[0].plot([], [], color=_IMAGINED), *axes[0].plot([], [], color=_REAL)]
    axes[0].legend(handles, ["imagined (band: 90 % of the rollouts)", "real"], ncols=2, fontsize=8, **_ABOVE)
    figure.suptitle(title)
    path = Path(path) / "plan.png" if Path(path).is_dir() else Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _column(found: Sequence[Foresight], column: int) -> list[tuple[int, np.ndarray, np.ndarray, int]]:
    return [(one.step, one.imagined.obs[:, :, column], one.obs[:, column], 0) for one in found]


def _draw_fan(axis: Any, steps: np.ndarray, rollouts: np.ndarray) -> None:
    axis.plot(steps, rollouts.T, color=_IMAGINED, lw=0.5, alpha=0.35)
    there = np.isfinite(rollouts).any(axis=0)
    if there.any():
        low, middle, high = np.nanquantile(rollouts[:, there], [0.05, 0.5, 0.95], axis=0)
        axis.fill_between(steps[there], low, high, color=_IMAGINED, alpha=0.2, lw=0)
        axis.plot(steps[there], middle, color=_IMAGINED, lw=1.4, ls="--", zorder=3)  # seen where it is what happened


def _most_moving(found: Sequence[Foresight]) -> list[int]:
    """Those columns that vary, in their order; of many those whose deviation is the largest for their size."""
    seen = np.concatenate([one.obs for one in found])
    moving = seen.std(0) / (np.abs(seen).mean(0) + 1e-8)
    return sorted(int(column) for column in np.argsort(-moving, kind="stable")[:_MOST_PANELS])
