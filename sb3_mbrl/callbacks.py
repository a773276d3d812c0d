"""Callbacks for agents with a world model."""

import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Figure, Image, Video

from sb3_mbrl.checkpoints import CheckpointFolder
from sb3_mbrl.checks import number, whole
from sb3_mbrl.diagnostics.dream import EpisodeTooShortError, check_same_spaces, dream
from sb3_mbrl.diagnostics.dream_plot import dream_figure, image_frames, is_image, strip

FPS = 10
"""The frames per second of videos"""

PAUSE = 20
"""The least time between two saves, in durations of the last: saving takes at most a twentieth of the time"""


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


class ExactCheckpointCallback(BaseCallback):
    """
    A callback that saves checkpoints from which a run continues as if it had not been interrupted.

    SB3's ``CheckpointCallback`` saves between a step and its storing: the agent has counted a step that its replay buffer
    lacks. This one saves before the next rollout, when the step has been stored and learned from, and saves agent, replay
    buffer, imagined rows and statistics of ``VecNormalize`` as one :class:`~sb3_mbrl.checkpoints.CheckpointSet`.

    To continue: ``CheckpointFolder(folder).newest().chosen.load(MBPO, env=env).learn(..., reset_num_timesteps=False)``.

    :param folder: the folder of the checkpoints, which no other run may use
    :param every: the number of real steps between two checkpoints; ``None``: none for this reason
    :param seconds: the seconds between two checkpoints, at least 20 times the duration of the last save; ``None``: none for
        this reason
    :param evaluations: SB3's ``EvalCallback`` after whose evaluations to save, if the last save is 20 times its duration ago
    :param keep: the number of checkpoints to keep
    :param at_end: whether to save at the end of training too
    :param report: takes a sentence when a checkpoint could not be saved, or not completely; by default a warning is given
    :raises FolderInUseError: at the start of training, when another process saves to the folder
    """

    def __init__(
        self,
        folder: str | Path | CheckpointFolder,
        every: int | None = None,
        seconds: float | None = None,
        evaluations: EvalCallback | None = None,
        keep: int = 2,
        at_end: bool = True,
        report: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder, keep)
        self.every = None if every is None else whole("every", every, 1)
        self.seconds = None if seconds is None else number("seconds", seconds, 0.0)
        self.evaluations, self.at_end = evaluations, at_end
        self.report = report or warnings.warn
        self._duration = 0.0
        self._saved_at, self._saved_step, self._evaluated = 0.0, 0, 0

    def _on_training_start(self) -> None:
        self.folder.acquire()
        self._note()
        newest = self.folder.newest().chosen
        if newest is None:
            self._save()  # a run that is killed soon can be resumed too
        else:
            self._saved_step = min(newest.step, self._saved_step)

    def _on_rollout_start(self) -> None:
        if self._is_due():
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.at_end:
            self._save()
            self.folder.release()

    def _is_due(self) -> bool:
        if self.num_timesteps == self._saved_step:
            return False
        if self.every is not None and self.num_timesteps - self._saved_step >= self.every:
            return True
        since = time.monotonic() - self._saved_at
        if since < PAUSE * self._duration:
            return False
        return (self.seconds is not None and since >= self.seconds) or self._evaluations() > self._evaluated

    def _evaluations(self) -> int:
        """The number of evaluations so far"""
        callback = self.evaluations
        return 0 if callback is None or callback.eval_freq <= 0 else callback.n_calls // callback.eval_freq

    def _note(self) -> None:
        self._saved_at, self._saved_step, self._evaluated = time.monotonic(), self.model.num_timesteps, self._evaluations()

    def _save(self) -> None:
        began = time.monotonic()
        agent: Any = self.model
        try:
            saved = self.folder.save(agent)
        except OSError as error:
            self.report(
                f"The checkpoint after {agent.num_timesteps} real steps could not be saved: {error}. Training continues; the "
                "last good checkpoint is untouched."
            )
        else:
            if saved.lacks:
                self.report(f"The checkpoint {saved.path} was saved {saved.without}. The last complete one is kept.")
        self._duration = time.monotonic() - began
        self._note()
