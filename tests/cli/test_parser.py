"""Help of every command."""

import pytest

from sb3_mbrl.cli import main


@pytest.mark.parametrize("command", ["train", "evaluate", "play", "plot", "plugins", "check"])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"  sb3-mbrl {command}" in out
