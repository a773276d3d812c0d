"""Help, and the command without arguments."""

import subprocess
import sys

import pytest

from sb3_mbrl.cli import main


@pytest.mark.parametrize("command", ["train", "evaluate", "plot", "plugins", "check"])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"  sb3-mbrl {command}" in out


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "sb3_mbrl", "evaluate", "nothing.zip", "--env", "Pendulum-v1"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["sb3-mbrl evaluate: there is no file nothing.zip"]
