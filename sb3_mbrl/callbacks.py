"""Callbacks for agents with a world model."""

import importlib.util

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, Image, Video

from sb3_mbrl.checks import whole
from sb3_mbrl.diagnostics.dream import EpisodeTooShortError, check_same_spaces, dream
from sb3_mbrl.diagnostics.dream_plot import dream_figure, image_frames, is_image, strip

FPS = 10
"""Of videos"""


class DreamCallback(BaseCallback):
    """
    Logs open-loop predictions to TensorBoard: what the world model makes of an episode whose beginning it saw, images as a
    strip (truth, model and error one above the other; green frames: seen, red: imagined), and as a video where moviepy is
    installed; numbers as curves.

    :param env: one environment of the kind that the agent is trained in, for this alone
    :param every: real steps between two pictures
    :param context: observations that the model sees
    :param horizon: observations that it imagines
    :param seed: of the environment: always the same episode, as far as the agent acts the same
    :raises TypeError: for anything but one environment
    :raises ValueError: when training begins, for an environment of other spaces
    """

    def __init__(self, env: gym.Env, every: int = 5_000, context: int = 5, horizon: int = 45, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(env, gym.Env):
            raise TypeError(f"DreamCallback needs one Gymnasium environment of its own, e.g. gym.make(...), not {env!r}")
        self.env, self.seed = env, seed
        self.every, self.context, self.horizon = (
            whole(name, value, 1) for name, value in (("every", every), ("context", context), ("horizon", horizon))
        )
        self._last = 0

    def _on_training_start(self) -> None:
        self._last = self.model.num_timesteps
        check_same_spaces(self.model, self.env)  # type: ignore[arg-type]

    def _on_step(self) -> bool:
        model = getattr(self.model, "world_model", None)
        if model is not None and model.fitted and self.num_timesteps // self.every > self._last // self.every:
            self._last = self.num_timesteps
            self._show()
        return True

    def _show(self) -> None:
        try:
            found = dream(self.model, self.env, context=self.context, horizon=self.horizon, seed=self.seed)  # type: ignore[arg-type]
        except EpisodeTooShortError:
            return  # the agent fails before the model has seen enough; the next picture may do better
        everything = ("stdout", "log", "json", "csv")
        for key, values in found.real.items():
            if is_image(values):
                self.logger.record(f"dream/{key}", Image(strip(found, key), "HWC"), exclude=everything)
                if importlib.util.find_spec("moviepy") is not None:  # which TensorBoard makes videos with
                    frames = th.as_tensor(image_frames(found, key)).permute(0, 3, 1, 2)[None]
                    self.logger.record(f"dream/{key}_video", Video(frames, fps=FPS), exclude=everything)
        figure = dream_figure(found)
        if figure is not None:
            self.logger.record("dream/curves", Figure(figure, close=False), exclude=everything)
