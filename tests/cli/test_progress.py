"""Progress of commands."""

import time

import numpy as np

from sb3_mbrl.agent.progress import ProgressLines
from sb3_mbrl.cli import progress
from sb3_mbrl.cli.progress import EpisodeProgress, training_progress, waiting


def step(shown, done=False):
    shown({"episode_counts": np.array([0]), "done": done}, {})


def test_episodes_are_shown_within_the_first_second(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "DELAY", 0.5)
    with EpisodeProgress(3) as shown:
        shown._timer.cancel()
        step(shown)
        assert capsys.readouterr().err == "", "nothing for what is over at once"
        now[0] = 0.6
        step(shown)
        assert capsys.readouterr().err == "0 of 3 episodes, 2 steps, 1 s, 0.3 s a step\n"
        now[0] = 10.0
        step(shown)
        assert capsys.readouterr().err == "", "a line every ten seconds"
        now[0] = 10.6
        step(shown, done=True)
        assert capsys.readouterr().err == "1 of 3 episodes, 4 steps, 11 s, 2.6 s a step\n"
    with EpisodeProgress(3, shown=False) as shown:
        now[0] = 30.0
        step(shown)
    assert capsys.readouterr().err == ""


def test_a_long_first_decision_is_shown_too(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.02)
    with EpisodeProgress(3):
        time.sleep(0.2)
    assert capsys.readouterr().err == "0 of 3 episodes, 0 steps, 0 s\n"


def test_a_terminal_gets_one_line(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with EpisodeProgress(3) as shown:
        shown._timer.join()
    assert capsys.readouterr().err == "\r\033[K0 of 3 episodes, 0 steps, 0 s\r\033[K"


def test_what_takes_long_is_said(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.02)
    with waiting("Loading a.zip ..."):
        time.sleep(0.2)
    with waiting("Loading b.zip ..."):
        pass
    with waiting("Loading c.zip ...", shown=False):
        time.sleep(0.1)
    assert capsys.readouterr().err == "Loading a.zip ...\n"


def test_lines_without_rich_or_a_terminal(capsys, monkeypatch):
    assert isinstance(training_progress(), ProgressLines)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert isinstance(training_progress(), ProgressLines)
    assert 'pip install "sb3-mbrl[rich]"' in capsys.readouterr().out
