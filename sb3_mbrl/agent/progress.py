"""Progress of training: a bar, or plain lines where there is no terminal; both from the first second, both with the time left.

SB3's own bar begins after a first fit, and takes the time left from its speed, which is meaningless while the first steps are
random: these cost nothing, and the later ones do.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback

from sb3_mbrl.agent.estimate import Estimate

LINE_SECONDS = 10.0
"""The seconds between two lines"""

PRIOR_STEPS = 20
"""The number of real steps that the estimate of a step's seconds counts as, against those that are measured"""


class TimeLeft:
    """
    The time left of a run, with the random first steps, the steps that learn and the fits of the world model kept apart.

    :param total: real steps at the end of the run
    :param done: real steps at its beginning
    :param random_until: real steps before which nothing is learned
    :param estimate: the estimate of the run's costs; ``None``: there is none
    :param fit_seconds: a function that returns the seconds of the fits of the world model so far, and those of a fit that is
        running
    :param now: the clock, in seconds
    """

    def __init__(
        self,
        total: int,
        done: int,
        random_until: int,
        estimate: Estimate | None = None,
        fit_seconds: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.begun, self.done, self.random_until = total, done, done, random_until
        self.estimate, self.now = estimate, now
        self.fit_seconds = fit_seconds
        self.started = now()
        self._learning_from: tuple[int, float, float] | None = None  # real steps, clock and seconds of fits at that time
        self._random = 0.0  # the seconds of the random steps so far

    def note(self, num_timesteps: int) -> None:
        """Note the real steps so far."""
        self.done = num_timesteps
        if num_timesteps <= self.random_until:
            self._random = self.now() - self.started
        elif self._learning_from is None:
            # The step that crosses the threshold is the last random one; learning follows it.
            self._random = self.now() - self.started
            self._learning_from = num_timesteps, self.now(), sum(self.fit_seconds())

    def left(self) -> float | None:
        """The seconds left; ``None`` as long as nothing is known of the steps to come."""
        learn_left = self.total - max(self.done, self.random_until)
        random_left = max(0, min(self.total, self.random_until) - self.done)
        random_done = min(self.done, self.random_until) - self.begun
        left = random_left * self._random / random_done if random_done > 0 else 0.0
        if learn_left <= 0:
            return left
        prior = None if self.estimate is None else self.estimate.step_seconds
        seconds, steps = (0.0, 0.0) if prior is None else (prior * PRIOR_STEPS, float(PRIOR_STEPS))
        if self._learning_from is not None:
            at, clock, fits = self._learning_from
            seconds += self.now() - clock - (sum(self.fit_seconds()) - fits)
            steps += self.done - at
        if steps == 0:
            return None
        # The mean seconds of a step that learns, without fits; and the fits that are to come.
        return left + learn_left * seconds / steps + self._fits_left(learn_left)

    def _fits_left(self, learn_left: int) -> float:
        if self.estimate is None or not self.estimate.fits or not self.estimate.learning_steps:
            return 0.0
        share = learn_left / self.estimate.learning_steps
        fits_done = self.estimate.fits * (1 - share)
        spent, running = self.fit_seconds()
        each = spent / fits_done if spent > 0 and fits_done >= 1 else self.estimate.fit_seconds
        return max(0.0, each * self.estimate.fits * share - min(running, each))

    def text(self) -> str:
        """The time left as a clock."""
        left = self.left()
        return "?" if left is None else clock(left)


def _time_left(model: Any, total: int) -> TimeLeft:
    """
    Estimate the time left for an algorithm that does not do so itself, such as one whose world model is off. Measured costs of
    its updates are used, where there are any.
    """
    measured = getattr(getattr(model, "recorder", None), "costs", None) is not None
    known = model.estimate(total) if measured else None
    return TimeLeft(total, model.num_timesteps, getattr(model, "learning_starts", 0), known)


def clock(seconds: float) -> str:
    """Put seconds as hours, minutes and seconds: ``"1:02:03"``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class TrainingBar(ProgressBarCallback):
    """SB3's progress bar, open from the first second, with the present activity and a sensible time left."""

    time_left: TimeLeft | None = None

    def begin(self, time_left: TimeLeft) -> None:
        """Open the bar; a bar that is open stays."""
        if "pbar" in vars(self):
            return
        from rich.progress import BarColumn, ProgressColumn, Text, TimeElapsedColumn
        from tqdm.rich import FractionColumn, tqdm

        self.time_left = time_left

        class Left(ProgressColumn):
            """The time left."""

            def render(self, task: Any) -> Text:
                return Text(time_left.text(), style="progress.remaining")

        columns = (
            "[progress.description]{task.description}[progress.percentage]{task.percentage:>4.0f}%",
            BarColumn(bar_width=None),
            FractionColumn(),
            "[",
            TimeElapsedColumn(),
            "<",
            Left(),
            "]",
        )
        self.pbar = tqdm(total=time_left.total - time_left.done, progress=columns)

    def describe(self, activity: str) -> None:
        """Show the present activity."""
        if "pbar" in vars(self):
            self.pbar.set_description(activity)

    def _on_training_start(self) -> None:
        self.begin(_time_left(self.model, self.locals["total_timesteps"]))

    def _on_step(self) -> bool:
        if self.time_left is not None:
            self.time_left.note(self.num_timesteps)
        return super()._on_step()

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar. SB3 does so only when training ends without an exception."""
        if "pbar" in vars(self):
            self.pbar.refresh()
            self.pbar.close()
            del self.pbar


class ProgressLines(BaseCallback):
    """
    Progress in plain lines: the first of every activity at once, then one every ten seconds.

    :param write: writes a line; ``None``: to the standard output
    """

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.write = write or (lambda line: print(line, flush=True))
        self.time_left: TimeLeft | None = None
        self._last = -float("inf")
        self._seen: set[str] = set()

    def begin(self, time_left: TimeLeft) -> None:
        """Begin a run; one that has begun goes on."""
        if self.time_left is None:
            self.time_left = time_left
            self._line("")

    def describe(self, activity: str) -> None:
        """Take note of the present activity."""
        kind = activity.partition(" ")[0]
        if self.time_left is None or not kind:
            return
        if kind not in self._seen or self.time_left.now() - self._last >= LINE_SECONDS:
            self._seen.add(kind)
            self._line(activity)

    def _line(self, activity: str) -> None:
        left = self.time_left
        assert left is not None  # set by begin
        self._last = left.now()
        share = (left.done - left.begun) / max(left.total - left.begun, 1)
        passed, remaining = clock(left.now() - left.started), left.text()
        about = "" if remaining == "?" else f", about {remaining} left"
        what = f": {activity}" if activity else ""
        total = max(
            left.total, left.done
        )  # the last steps of several environments may go beyond the number that was asked for
        self.write(f"{left.done:,} of {total:,} real steps ({share:.0%}), {passed} passed{about}{what}")

    def _on_training_start(self) -> None:
        self.begin(_time_left(self.model, self.locals["total_timesteps"]))

    def _on_step(self) -> bool:
        if self.time_left is not None:
            self.time_left.note(self.num_timesteps)
            if self.time_left.now() - self._last >= LINE_SECONDS:
                self._line("")
        return True

    def _on_training_end(self) -> None:
        if self.time_left is not None:
            self._line("finished")
        self.time_left = None

    def close(self) -> None:
        """Do nothing: lines need no end."""


def is_terminal() -> bool:
    """Tell whether the standard output can show a bar."""
    return sys.stdout.isatty()
