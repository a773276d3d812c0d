"""Progress: the time left by hand, lines at their times, and a bar that is open during a first fit."""

import pytest
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback

from sb3_mbrl.agent.estimate import Costs, Estimate
from sb3_mbrl.agent.progress import LINE_SECONDS, PRIOR_STEPS, ProgressLines, TimeLeft, TrainingBar, clock
from tests.helpers.agents import learned


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def run(costs=None, fits=0, **kwargs):
    """1,000 steps, the first 200 random."""
    now = Clock()
    known = None if costs is None else Estimate(1000, 800, 10.0, fits=fits, fit_batches=100, costs=costs)
    return TimeLeft(1000, 0, 200, known, now=now, **kwargs), now


def test_the_time_left_while_the_first_steps_are_random():
    """SB3's bar takes it from the speed of random steps: 5 seconds for a run of two minutes."""
    left, now = run(Costs(update=0.01))
    assert left.left() == pytest.approx(800 * 0.1), "before the first step"
    now.time = 1.0
    left.note(100)
    assert left.left() == pytest.approx(1.0 + 80.0)
    unknown, now = run()
    now.time = 1.0
    unknown.note(100)
    assert unknown.text() == "?", "no estimate, and nothing was measured"


def test_the_time_left_follows_what_is_measured():
    left, now = run(Costs(update=0.01))
    now.time = 2.0
    left.note(201)
    now.time = 2.0 + 180 * 0.2
    left.note(381)
    mean = (PRIOR_STEPS * 0.1 + 180 * 0.2) / (PRIOR_STEPS + 180)
    assert left.left() == pytest.approx(619 * mean)
    left.note(1000)
    assert left.left() == 0.0


def test_fits_are_counted_apart():
    seconds = [0.0, 0.0]
    left, now = run(Costs(update=0.0, batch=0.1), fits=8, fit_seconds=lambda: tuple(seconds))
    assert left.left() is None, "updates that take no time were not measured"
    left, now = run(Costs(update=0.01, batch=0.1), fits=8, fit_seconds=lambda: tuple(seconds))
    assert left.left() == pytest.approx(80 + 8 * 10)
    now.time = 0.0
    left.note(201)
    now.time, seconds[1] = 4.0, 4.0
    # The running fit is not taken for a slow step, and is on its way to its end.
    assert left.left() == pytest.approx(799 * 0.1 + 8 * 10 * 799 / 800 - 4)
    now.time, seconds[:] = 5.0 + 399 * 0.1, [20.0, 0.0]
    left.started = 0.0
    left.note(600)
    assert left._fits_left(400) == pytest.approx(20.0), "half of the fits took 20 s"


def test_clock():
    assert clock(3723.4) == "1:02:03"


def test_lines_come_at_once_and_then_every_ten_seconds():
    written: list[str] = []
    lines, (left, now) = ProgressLines(written.append), run(Costs(update=0.01))
    lines.describe("fit")
    assert written == [], "not before the run"
    lines.begin(left)
    assert written == ["0 of 1,000 real steps (0%), 0:00:00 passed, about 0:01:20 left"]
    lines.describe("fit")
    lines.describe("fit 32: 0.5")
    assert len(written) == 2
    assert written[1].endswith(": fit")
    now.time = LINE_SECONDS
    lines.describe("fit 64: 0.4")
    assert written[2].endswith("0:00:10 passed, about 0:01:20 left: fit 64: 0.4")
    lines.describe("")
    assert len(written) == 3


def test_verbose_shows_a_run_from_its_first_second(capsys):
    learned(verbose=1, buffer_size=300).learn(60)
    out = capsys.readouterr().out
    order = [
        "Measuring how long updates take here",
        "Estimate of MBPO:",
        "updates: 10 (1 per real step)",
        "0 of 60 real steps (0%)",
        "51 of 60 real steps (85%)",
        ": fit",
        "60 of 60 real steps (100%)",
    ]
    places = [out.index(text) for text in order]
    assert places == sorted(places)
    learned().learn(60)
    assert capsys.readouterr().out == "", "silent without verbose"


def test_the_bar_is_open_during_a_first_fit(tmp_path):
    pytest.importorskip("rich")
    agent = learned(buffer_size=300)
    agent.learn(60)
    agent.save(tmp_path / "agent")
    seen = []

    class Watched(TrainingBar):
        def describe(self, activity):
            seen.append((activity, "pbar" in vars(self)))
            super().describe(activity)

    fresh = learned(buffer_size=300)
    fresh.take_replay_buffer(agent.replay_buffer)
    bar = Watched()
    fresh.learn(20, callback=[bar])
    assert seen[0] == ("fit", True)
    assert "pbar" not in vars(bar), "closed at the end"
    assert bar.time_left is not None
    assert bar.time_left.done == 20


def test_progress_bar_is_ours_with_the_model_and_sb3s_without():
    pytest.importorskip("rich")
    seen = []

    class Sees(BaseCallback):
        def _on_step(self):
            seen.append(type(self.model.recorder.progress))
            return True

    learned(buffer_size=300).learn(2, callback=Sees(), progress_bar=True)
    learned(buffer_size=300, world_model=None).learn(2, callback=[Sees()], progress_bar=True)
    learned(buffer_size=300, verbose=1).learn(2, callback=[Sees(), ProgressBarCallback()])
    assert seen == [TrainingBar, TrainingBar, *[ProgressBarCallback] * 4]


class Lines(BaseCallback):
    """A callback that keeps the time left that lines of progress show at the first step."""

    def __init__(self, lines: ProgressLines) -> None:
        super().__init__()
        self.lines, self.left = lines, ""

    def _on_step(self) -> bool:
        self.left = self.left or self.lines.time_left.text()
        return True


def test_the_time_left_is_known_where_the_world_model_is_off():
    """It was "?" until the first update, although the costs had been measured."""
    agent = learned(world_model=None, learning_starts=20)
    agent.estimate(30)
    shown = ProgressLines(lambda line: None)
    first = Lines(shown)
    agent.learn(30, callback=[shown, first])
    assert first.left[0].isdigit()


def test_steps_beyond_the_number_that_was_asked_for_are_not_more_than_all():
    """Environments side by side made "1,304 of 1,300"."""
    written: list[str] = []
    lines, (left, _) = ProgressLines(written.append), run(Costs(update=0.01))
    left.note(1004)
    lines.begin(left)
    assert written[0].startswith("1,004 of 1,004 real steps")
