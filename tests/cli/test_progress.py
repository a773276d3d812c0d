"""Progress of commands."""

import numpy as np

from sb3_mbrl.agent.progress import ProgressLines
from sb3_mbrl.cli import progress
from sb3_mbrl.cli.progress import EpisodeProgress, training_progress


def test_episodes_are_shown_from_the_first_second(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = EpisodeProgress(3)
    assert capsys.readouterr().err == "0 of 3 episodes, 0 steps, 0 s\n"
    shown({"episode_counts": np.array([0]), "done": False}, {})
    assert capsys.readouterr().err == "", "a line every ten seconds"
    now[0] = 10.0
    shown({"episode_counts": np.array([0]), "done": True}, {})
    assert capsys.readouterr().err == "1 of 3 episodes, 2 steps, 10 s, 5 s a step\n"
    shown.close()
    EpisodeProgress(3, shown=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_one_line(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    EpisodeProgress(3).close()
    assert capsys.readouterr().err == "\r\033[K0 of 3 episodes, 0 steps, 0 s\r\033[K"


def test_lines_without_rich_or_a_terminal(capsys, monkeypatch):
    assert isinstance(training_progress(), ProgressLines)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert isinstance(training_progress(), ProgressLines)
    assert 'pip install "sb3-mbrl[rich]"' in capsys.readouterr().out
