"""``main``: exit codes, and what is printed where."""

import os
import subprocess
import sys

import gymnasium as gym
import pytest

from sb3_mbrl.cli import main
from sb3_mbrl.cli.values import UserError
from sb3_mbrl.plugins import PluginError


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_traceback_on_request():
    with pytest.raises(gym.error.NameNotFound):
        main(["train", "--env", "Pendulm-v1", "--steps", "10", "--traceback"])


def test_ctrl_c_before_anything_began(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_mbrl.cli.train.train", interrupt)
    assert main(["train", "--env", "Pendulum-v1"]) == 130
    assert not os.path.exists("runs")


@pytest.mark.parametrize("error", [UserError, PluginError, gym.error.Error])
def test_a_mistake_is_one_line_and_code_2(error, monkeypatch, capsys):
    """Gymnasium and the plug-ins break long messages into lines."""

    def fail(args):
        raise error("first line,\n   second line")

    monkeypatch.setattr("sb3_mbrl.cli.train.train", fail)
    assert main(["train", "--env", "Pendulum-v1"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "sb3-mbrl train: first line, second line\n")
    with pytest.raises(error):
        main(["train", "--env", "Pendulum-v1", "--traceback"])


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr("sb3_mbrl.cli.train.train", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--env", "Pendulum-v1"])


@pytest.mark.parametrize("code", [0, 1])
def test_the_code_of_the_command_is_returned(code, monkeypatch):
    """1 is a failed check."""
    monkeypatch.setattr("sb3_mbrl.cli.train.train", lambda args: code)
    assert main(["train", "--env", "Pendulum-v1"]) == code


def test_a_reader_that_has_enough_is_no_error():
    """``sb3-mbrl plugins | head -1`` ended in a traceback."""
    command = f"'{sys.executable}' -m sb3_mbrl plugins | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
