"""Plots of plan rollouts against reality, with Matplotlib (the ``plots`` extra)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mbrl.diagnostics.plan import PlanRollouts
from sb3_mbrl.spaces import SpaceCodec

_MOST_PANELS = 6
_ABOVE: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
_IMAGINED, _REAL = "tab:blue", "black"


def draw_plans(
    moments: Sequence[PlanRollouts],
    observation_space: spaces.Space,
    path: Path | str,
    *,
    title: str,
    columns: Sequence[int] | None = None,
) -> Path:
    """
    Draw one panel per column of the observation and one for the reward: every imagined trajectory, the band that holds 90 % of
    them, and what then really happened.

    :param moments: the result of :func:`~sb3_mbrl.diagnostics.plan.roll_out_plans`
    :param observation_space: the environment's observation space
    :param path: the file to write; its suffix decides the format (default: png). For an existing folder, ``plan.png`` in it
    :param title: the title of the figure
    :param columns: the columns of the encoded observation to draw (default: the six that vary most relative to
        their size)
    :return: the path of the file
    :raises ValueError: for a column that does not exist, or if there is nothing to draw
    """
    if not moments:
        raise ValueError("there is nothing to draw: the episode had no step")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = SpaceCodec(observation_space).names
    chosen = _most_varying(moments) if columns is None else list(columns)
    if wrong := [column for column in chosen if not 0 <= column < len(names)]:
        raise ValueError(f"columns={wrong}: there are the columns 0 to {len(names) - 1}")
    # A reward belongs to the step before the observation that it comes with, so rewards start one step later.
    panels = [(names[column], _column(moments, column)) for column in chosen]
    panels.append(("reward", [(moment.step, moment.imagined.reward, moment.reward, 1) for moment in moments]))
    figure = Figure(figsize=(9, 1.2 + 1.7 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, parts) in zip(axes, panels, strict=True):
        for step, imagined, real, first in parts:
            _draw_rollouts(axis, step + first + np.arange(imagined.shape[1]), imagined)
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


def _column(moments: Sequence[PlanRollouts], column: int) -> list[tuple[int, np.ndarray, np.ndarray, int]]:
    return [(moment.step, moment.imagined.obs[:, :, column], moment.obs[:, column], 0) for moment in moments]


def _draw_rollouts(axis: Any, steps: np.ndarray, rollouts: np.ndarray) -> None:
    axis.plot(steps, rollouts.T, color=_IMAGINED, lw=0.5, alpha=0.35)
    alive = np.isfinite(rollouts).any(axis=0)
    if alive.any():
        low, median, high = np.nanquantile(rollouts[:, alive], [0.05, 0.5, 0.95], axis=0)
        axis.fill_between(steps[alive], low, high, color=_IMAGINED, alpha=0.2, lw=0)
        # Dashed and on top, so that both lines can be seen where the real one equals the median.
        axis.plot(steps[alive], median, color=_IMAGINED, lw=1.4, ls="--", zorder=3)


def _most_varying(moments: Sequence[PlanRollouts]) -> list[int]:
    """Choose at most six columns, in their order: those with the largest standard deviation relative to their mean size."""
    obs = np.concatenate([moment.obs for moment in moments])
    variation = obs.std(0) / (np.abs(obs).mean(0) + 1e-8)
    return sorted(int(column) for column in np.argsort(-variation, kind="stable")[:_MOST_PANELS])
