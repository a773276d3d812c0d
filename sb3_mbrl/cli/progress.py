"""Progress of commands: of training, of evaluations in it, of episodes that are played."""

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from sb3_mbrl.agent.progress import ProgressLines, TrainingBar, is_terminal
from sb3_mbrl.agent.whole_files import write_beside
from sb3_mbrl.checkpoints.normalising import save_statistics
from sb3_mbrl.cli.masks import with_masks
from sb3_mbrl.cli.normalize import BEST_STATISTICS

LINE_SECONDS = 10.0
"""The seconds between two lines"""

DELAY = 0.9
"""The seconds after which something is said"""

_CLEAR = "\r\033[K"
"""To the beginning of a terminal's line, which is cleared"""


def training_progress() -> BaseCallback:
    """Make a bar where there is a terminal and rich is installed, else lines."""
    if not all(importlib.util.find_spec(name) for name in ("tqdm", "rich")):
        print('No progress bar, but lines: run `pip install "sb3-mbrl[rich]"` for one')
        return ProgressLines()
    return TrainingBar() if is_terminal() else ProgressLines()


class Evaluation(EvalCallback):
    """
    SB3's evaluations, which show their progress, tell the agent which actions are legal, and save the statistics of
    ``VecNormalize`` with the best agent.
    """

    def _init_callback(self) -> None:
        super()._init_callback()
        if self.callback_on_new_best is None and self.best_model_save_path is not None:
            self.callback_on_new_best = _SaveStatistics(self.best_model_save_path)
            self.callback_on_new_best.parent = self
            self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        due = self.eval_freq > 0 and self.n_calls % self.eval_freq == 0
        if due:
            self._describe("evaluate")
        agent = self.model
        self.model = with_masks(agent, self.eval_env)
        try:
            result = super()._on_step()
        finally:
            self.model = agent
        if due:
            self._describe("")
        return result

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        if locals_["done"]:
            # SB3 counts the episode after this call.
            self._describe(f"evaluate {int(locals_['episode_counts'].sum()) + 1}/{self.n_eval_episodes}")

    def _describe(self, activity: str) -> None:
        recorder = getattr(self.model, "recorder", None)  # algorithms of plug-ins need not have one
        if recorder is not None:
            recorder.describe(activity)


class _SaveStatistics(BaseCallback):
    """A callback that saves the statistics beside the best agent."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        statistics = self.model.get_vec_normalize_env()
        if statistics is not None:
            write_beside(Path(self.folder) / BEST_STATISTICS, lambda beside: save_statistics(statistics, beside))
        return True


@contextmanager
def waiting(text: str, shown: bool = True) -> Iterator[None]:
    """
    Say on the error output what is being done, if it takes about a second or longer.

    :param text: what is being done
    :param shown: whether to say it at all
    """
    timer = threading.Timer(DELAY, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class EpisodeProgress:
    """
    The progress of episodes, for the ``callback`` of SB3's ``evaluate_policy``: a line on the error output that is rewritten
    on a terminal, else a new line within the first second and then every ten seconds. Use it in a ``with`` block.

    :param episodes: the number of episodes
    :param shown: whether to show anything
    """

    def __init__(self, episodes: int, shown: bool = True) -> None:
        self.episodes, self.shown = episodes, shown
        self.started = time.monotonic()
        self.steps = self.done = 0
        self._last = -float("inf")
        self._terminal = sys.stderr.isatty()
        self._timer = threading.Timer(DELAY, self._show)  # a first decision may take long
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if self.shown:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        if self.shown and self._terminal:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Note a step of an episode."""
        # SB3 counts an episode after this call.
        self.step(int(locals_["episode_counts"].sum()) + int(bool(locals_["done"])))

    def step(self, done: int = 0) -> None:
        """
        Note a step.

        :param done: the number of episodes that have ended
        """
        self.steps, self.done = self.steps + 1, done
        now = time.monotonic()
        if now - self.started >= DELAY and now - self._last >= (0.2 if self._terminal else LINE_SECONDS):
            self._show()

    def _show(self) -> None:
        if not self.shown:
            return
        self._last = time.monotonic()
        passed = self._last - self.started
        each = f", {passed / self.steps:.2g} s a step" if self.steps else ""
        text = f"{self.done} of {self.episodes} episodes, {self.steps:,} steps, {passed:.0f} s{each}"
        print(_CLEAR + text if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)
