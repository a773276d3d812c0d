"""Images of dreams: truth, model and error, as a strip or an animation (Matplotlib and Pillow: the ``plots`` extra)."""

from pathlib import Path
from typing import Any

import numpy as np

from sb3_mbrl.checks import whole
from sb3_mbrl.diagnostics.dream import Dream

SEEN, IMAGINED = (46, 160, 67), (207, 34, 46)
"""The colours that mark observations which the model saw, and those which it imagined"""
_SIDE, _BORDER, _MOST_COLUMNS = 96, 3, 6


def is_image(values: np.ndarray) -> bool:
    """Whether the observations under a key are images, ``(T, C, H, W)`` bytes."""
    return values.ndim == 4 and values.dtype == np.uint8


def image_frames(dream: Dream, key: str) -> np.ndarray:
    """
    Stack truth, model and the absolute error between them, one above the other.

    :param dream: a dream with image observations
    :param key: the key of the images
    :return: ``(T, height, width, 3)`` bytes
    """
    real, imagined = dream.real[key], dream.imagined[key]
    error = np.abs(real.astype(np.int16) - imagined.astype(np.int16)).astype(np.uint8)
    rows = [_framed(_coloured(values), dream.context) for values in (real, imagined, error)]
    return np.concatenate(rows, axis=1)


def strip(dream: Dream, key: str, every: int = 5) -> np.ndarray:
    """
    Lay some of the frames out from left to right, as one image.

    :param dream: a dream with image observations
    :param key: the key of the images
    :param every: the distance between two frames; the last one that the model saw is among them
    :return: ``(height, width, 3)`` bytes
    """
    frames = image_frames(dream, key)
    return np.concatenate(list(frames[(dream.context - 1) % every :: every]), axis=1)


def draw_dream(dream: Dream, path: Path | str, *, title: str = "", fps: int = 10) -> Path:
    """
    Write a GIF: images frame by frame, vectors as curves that grow. What the model saw is framed (or drawn) in green, what it
    imagined in red.

    :param dream: the dream to draw
    :param path: the file to write, ``.gif`` (also the default suffix). For an existing folder, ``dream.gif`` in it
    :param title: the title above the curves
    :param fps: frames per second
    :return: the path of the file
    :raises ValueError: if there is nothing to draw, or for another kind of file
    """
    path = Path(path) / "dream.gif" if Path(path).is_dir() else Path(path)
    path = path if path.suffix else path.with_suffix(".gif")
    if path.suffix.lower() != ".gif":
        raise ValueError(f"{path}: a dream is an animation, so give the name of a .gif")
    whole("fps", fps, 1)
    from PIL import Image

    images = [image_frames(dream, key) for key, values in dream.real.items() if is_image(values)]
    columns = _columns(dream)
    if not images and not columns:
        raise ValueError("there is nothing to draw: observations are neither images nor vectors")
    parts = images + ([_curves(dream, columns, title)] if columns else [])
    height = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, height - part.shape[1]), (0, 0), (0, 0)), constant_values=255) for part in parts]
    frames = [Image.fromarray(frame) for frame in np.concatenate(padded, axis=2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return path


def dream_figure(dream: Dream, title: str = "") -> Any:
    """Draw the curves of vectors and of the reward as one Matplotlib figure; ``None`` if there are none."""
    columns = _columns(dream)
    return _figure(dream, columns, title)[0] if columns else None


def _coloured(values: np.ndarray) -> np.ndarray:
    """Convert ``(T, C, H, W)`` to ``(T, h, w, 3)``, enlarged to at least 96 pixels; of stacked frames take the newest."""
    channels = values[:, -3:] if values.shape[1] % 3 == 0 else values[:, -1:]
    rgb = np.repeat(channels, 3, axis=1) if channels.shape[1] == 1 else channels
    factor = max(1, -(-_SIDE // max(values.shape[2:])))  # -(-a // b) rounds up
    return rgb.repeat(factor, 2).repeat(factor, 3).transpose(0, 2, 3, 1)


def _framed(values: np.ndarray, context: int) -> np.ndarray:
    """Surround every image with a border, green within the context and red after it."""
    padded = np.pad(values, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)))
    for t, frame in enumerate(padded):
        colour = SEEN if t < context else IMAGINED
        for edge in (frame[:_BORDER], frame[-_BORDER:], frame[:, :_BORDER], frame[:, -_BORDER:]):
            edge[...] = colour
    return padded


def _columns(dream: Dream) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """
    Choose the columns to draw: at most six columns of vector observations, those with the largest standard deviation relative
    to their mean size, and the reward.

    :return: name, truth and model of each
    """
    columns = []
    for key, values in dream.real.items():
        if not is_image(values):
            real, imagined = values.reshape(len(values), -1), dream.imagined[key].reshape(len(values), -1)
            columns += [(f"{key}[{i}]", real[:, i].astype(float), imagined[:, i].astype(float)) for i in range(real.shape[1])]
    by_variation = sorted(range(len(columns)), key=lambda i: -columns[i][1].std() / (np.abs(columns[i][1]).mean() + 1e-8))
    chosen = [columns[i] for i in sorted(by_variation[:_MOST_COLUMNS])]
    nan = np.array([np.nan])  # no reward leads to the first observation
    real_reward, imagined_reward = (np.concatenate([nan, values]) for values in (dream.real_reward, dream.imagined_reward))
    return [*chosen, ("reward", real_reward, imagined_reward)]


def _figure(dream: Dream, columns: list[tuple[str, np.ndarray, np.ndarray]], title: str) -> tuple[Any, list[Any], Any]:
    """Draw all curves; return the figure, its moving lines (seen, imagined, and the values of both), and its canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 1.1 * len(columns)), layout="constrained", dpi=90)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    lines = []
    green, red = (tuple(channel / 255 for channel in colour) for colour in (SEEN, IMAGINED))
    for axis, (name, real, imagined) in zip(axes, columns, strict=True):
        time = np.arange(len(real))
        axis.plot(time, real, color="black", lw=1.4)
        (seen,) = axis.plot(time[: dream.context], imagined[: dream.context], color=green, lw=1.4)
        (ahead,) = axis.plot(time[dream.context - 1 :], imagined[dream.context - 1 :], color=red, lw=1.4)
        lines.append((seen, ahead, imagined))
        axis.axvline(dream.context - 1, color="tab:grey", lw=0.6, ls=":")
        axis.set_ylabel(name, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("step", fontsize=8)
    figure.suptitle(f"{title}  black: real, green: seen, red: imagined".strip(), fontsize=9)
    return figure, lines, canvas


def _curves(dream: Dream, columns: list[tuple[str, np.ndarray, np.ndarray]], title: str) -> np.ndarray:
    """Animate the curves: ``(T, height, width, 3)`` bytes, in which the model's curves grow by a step per frame."""
    _, lines, canvas = _figure(dream, columns, title)
    canvas.draw()  # with the whole curves, so that all frames have the axis limits of the last one
    frames = []
    # By hand and not with Matplotlib's PillowWriter: draw_dream joins these frames with those of images.
    for t in range(len(dream.real_reward) + 1):
        for seen, ahead, imagined in lines:
            end = min(t + 1, dream.context)
            seen.set_data(np.arange(end), imagined[:end])
            later = np.arange(dream.context - 1, max(t + 1, dream.context))
            ahead.set_data(later, imagined[later])
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)
