"""Pictures of dreams: truth, model and error, side by side or moving (Matplotlib and Pillow: the ``plots`` extra)."""

from pathlib import Path
from typing import Any

import numpy as np

from sb3_mbrl.checks import whole
from sb3_mbrl.diagnostics.dream import Dream

SEEN, IMAGINED = (46, 160, 67), (207, 34, 46)
"""The frame of an observation that the model saw, and of one that it imagined"""
_SIDE, _BORDER, _MOST_COLUMNS = 96, 3, 6


def is_image(values: np.ndarray) -> bool:
    """Whether the observations under a key are images, ``(T, C, H, W)`` bytes."""
    return values.ndim == 4 and values.dtype == np.uint8


def image_frames(dream: Dream, key: str) -> np.ndarray:
    """
    Truth, model and the error between them, one above the other.

    :param key: of images
    :return: ``(T, height, width, 3)`` bytes
    """
    real, imagined = dream.real[key], dream.imagined[key]
    error = np.abs(real.astype(np.int16) - imagined.astype(np.int16)).astype(np.uint8)
    rows = [_framed(_coloured(values), dream.context) for values in (real, imagined, error)]
    return np.concatenate(rows, axis=1)


def strip(dream: Dream, key: str, every: int = 5) -> np.ndarray:
    """
    Some of the frames from left to right: one picture.

    :param every: moments between two frames; the last one that the model saw is among them
    :return: ``(height, width, 3)`` bytes
    """
    frames = image_frames(dream, key)
    return np.concatenate(list(frames[(dream.context - 1) % every :: every]), axis=1)


def draw_dream(dream: Dream, path: Path | str, *, title: str = "", fps: int = 10) -> Path:
    """
    Write a GIF: images frame by frame, numbers as curves that grow. What the model saw is framed (or drawn) in green, what it
    imagined in red.

    :param path: of the picture, ``.gif`` (also where there is no suffix); in a folder that exists it is ``dream.gif``
    :param title: above curves
    :param fps: frames per second
    :return: where the picture is
    :raises ValueError: where there is nothing that can be drawn, or for another kind of file
    """
    path = Path(path) / "dream.gif" if Path(path).is_dir() else Path(path)
    path = path if path.suffix else path.with_suffix(".gif")
    if path.suffix.lower() != ".gif":
        raise ValueError(f"{path}: a dream moves, so give the name of a .gif")
    whole("fps", fps, 1)
    from PIL import Image

    images = [image_frames(dream, key) for key, values in dream.real.items() if is_image(values)]
    columns = _columns(dream)
    if not images and not columns:
        raise ValueError("there is nothing to draw: observations are neither images nor numbers")
    parts = images + ([_curves(dream, columns, title)] if columns else [])
    height = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, height - part.shape[1]), (0, 0), (0, 0)), constant_values=255) for part in parts]
    frames = [Image.fromarray(frame) for frame in np.concatenate(padded, axis=2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return path


def dream_figure(dream: Dream, title: str = "") -> Any:
    """The curves of numbers as one Matplotlib figure; ``None`` where there are none."""
    columns = _columns(dream)
    return _figure(dream, columns, title)[0] if columns else None


def _coloured(values: np.ndarray) -> np.ndarray:
    """``(T, C, H, W)`` to ``(T, h, w, 3)``, large enough to be seen; of stacked frames the newest."""
    channels = values[:, -3:] if values.shape[1] % 3 == 0 else values[:, -1:]
    shown = np.repeat(channels, 3, axis=1) if channels.shape[1] == 1 else channels
    times = max(1, -(-_SIDE // max(values.shape[2:])))
    return shown.repeat(times, 2).repeat(times, 3).transpose(0, 2, 3, 1)


def _framed(values: np.ndarray, context: int) -> np.ndarray:
    wide = np.pad(values, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)))
    for t, frame in enumerate(wide):
        colour = SEEN if t < context else IMAGINED
        for edge in (frame[:_BORDER], frame[-_BORDER:], frame[:, :_BORDER], frame[:, -_BORDER:]):
            edge[...] = colour
    return wide


def _columns(dream: Dream) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, truth and model of the numbers that move most, and of the reward."""
    found = []
    for key, values in dream.real.items():
        if not is_image(values):
            real, imagined = values.reshape(len(values), -1), dream.imagined[key].reshape(len(values), -1)
            found += [(f"{key}[{i}]", real[:, i].astype(float), imagined[:, i].astype(float)) for i in range(real.shape[1])]
    moving = sorted(range(len(found)), key=lambda i: -found[i][1].std() / (np.abs(found[i][1]).mean() + 1e-8))
    chosen = [found[i] for i in sorted(moving[:_MOST_COLUMNS])]
    nothing = np.array([np.nan])
    earned, expected = (np.concatenate([nothing, values]) for values in (dream.real_reward, dream.imagined_reward))
    return [*chosen, ("reward", earned, expected)]


def _figure(dream: Dream, columns: list[tuple[str, np.ndarray, np.ndarray]], title: str) -> tuple[Any, list[Any], Any]:
    """The figure, what moves in it, and its canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 1.1 * len(columns)), layout="constrained", dpi=90)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    moving = []
    green, red = (tuple(channel / 255 for channel in colour) for colour in (SEEN, IMAGINED))
    for axis, (name, real, imagined) in zip(axes, columns, strict=True):
        time = np.arange(len(real))
        axis.plot(time, real, color="black", lw=1.4)
        (seen,) = axis.plot(time[: dream.context], imagined[: dream.context], color=green, lw=1.4)
        (ahead,) = axis.plot(time[dream.context - 1 :], imagined[dream.context - 1 :], color=red, lw=1.4)
        moving.append((seen, ahead, imagined))
        axis.axvline(dream.context - 1, color="tab:grey", lw=0.6, ls=":")
        axis.set_ylabel(name, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("step", fontsize=8)
    figure.suptitle(f"{title}  black: real, green: seen, red: imagined".strip(), fontsize=9)
    return figure, moving, canvas


def _curves(dream: Dream, columns: list[tuple[str, np.ndarray, np.ndarray]], title: str) -> np.ndarray:
    """``(T, height, width, 3)`` bytes: curves that grow."""
    _, moving, canvas = _figure(dream, columns, title)
    canvas.draw()  # with all of the curves: the axes' limits are those of the end
    frames = []
    for t in range(len(dream.real_reward) + 1):
        for seen, ahead, imagined in moving:
            until = min(t + 1, dream.context)
            seen.set_data(np.arange(until), imagined[:until])
            later = np.arange(dream.context - 1, max(t + 1, dream.context))
            ahead.set_data(later, imagined[later])
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)
