"""Callbacks for agents with a world model."""

import importlib.util
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, Image, Video

from sb3_mbrl.checks import whole
from sb3_mbrl.diagnostics.dream import EpisodeTooShortError, check_same_spaces, dream
from sb3_mbrl.diagnostics.dream_plot import dream_figure, image_frames, is_image, strip

FPS = 10
"""The frames per second of videos"""


class DreamCallback(BaseCallback):
    """
    A callback that logs open-loop predictions to TensorBoard: the world model sees the beginning of an episode and predicts
    the rest from the actions. Image observations are logged as a strip (truth, model and error one above the other; green
    frames: seen, red: imagined), and as a video if moviepy is installed; vectors as curves.

    :param env: an environment of the kind that the agent is trained in, used by this callback only
    :param every: the number of real steps between two predictions
    :param context: the number of observations that the model sees
    :param horizon: the number of observations that it imagines
    :param seed: the seed of the environment; episodes differ only where the agent acts differently
    :raises TypeError: for anything but one environment
    :raises ValueError: at the start of training, for an environment with other spaces than the agent's
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
        agent: Any = self.model
        check_same_spaces(agent, self.env)

    def _on_step(self) -> bool:
        model = getattr(self.model, "world_model", None)
        if model is not None and model.fitted and self.num_timesteps // self.every > self._last // self.every:
            self._last = self.num_timesteps
            self._show()
        return True

    def _show(self) -> None:
        try:
            agent: Any = self.model
            episode = dream(agent, self.env, context=self.context, horizon=self.horizon, seed=self.seed)
        except EpisodeTooShortError:
            return  # the episode ended before the model had seen enough; the next one may be longer
        text_formats = ("stdout", "log", "json", "csv")  # which cannot hold images
        for key, values in episode.real.items():
            if is_image(values):
                self.logger.record(f"dream/{key}", Image(strip(episode, key), "HWC"), exclude=text_formats)
                if importlib.util.find_spec("moviepy") is not None:  # TensorBoard encodes videos with it
                    frames = th.as_tensor(image_frames(episode, key)).permute(0, 3, 1, 2)[None]
                    self.logger.record(f"dream/{key}_video", Video(frames, fps=FPS), exclude=text_formats)
        figure = dream_figure(episode)
        if figure is not None:
            self.logger.record("dream/curves", Figure(figure, close=False), exclude=text_formats)
