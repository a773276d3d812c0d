"""``sb3-mbrl plugins``, ``check`` and ``--help``."""

import subprocess
import sys

import pytest

from sb3_mbrl.cli import main
from sb3_mbrl.cli.values import check_arguments
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.plugins import loader
from tests.cli.commands import module


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


def test_plugins_says_what_is_broken(here, capsys, monkeypatch):
    """A distribution whose module cannot be imported is a row with the reason, and costs the others nothing."""
    module(here, "sb3_mbrl_bad", "import no_such_package_anywhere\n")
    info = here / "sb3_mbrl_bad-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sb3-mbrl-bad\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[sb3_mbrl]\nbad = sb3_mbrl_bad\n")
    real = loader.entry_points
    monkeypatch.setattr(
        loader, "entry_points", lambda group: [one for one in real(group=group) if one.dist.name == "sb3-mbrl-bad"]
    )
    assert main(["plugins", "--verbose"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    bad = next(number for number, line in enumerate(lines) if line.startswith("bad "))
    assert lines[bad].split() == ["bad", "plugin", "sb3-mbrl-bad", "2.0", "broken"]
    assert "No module named 'no_such_package_anywhere'" in lines[bad + 1]
    assert any(line.split()[:3] == ["ensemble", "world", "model"] for line in lines)
    assert "Traceback" in captured.out, "--verbose shows where it broke"
    assert "  sb3_mbrl_world_models" in lines
    assert captured.err == ""


def test_check_passes_a_good_part(capsys):
    assert main(["check", "branched"]) == 0
    out = capsys.readouterr().out
    assert "ok       check_imagination_shapes" in out
    assert "0 FAILED" in out


def test_check_fails_a_bad_part(here, capsys):
    module(
        here,
        "bad_model",
        """
        import torch as th
        from sb3_mbrl.models.mlp import MLPModel

        class WrongShape(MLPModel):
            def step(self, *args, **kwargs):
                prediction = super().step(*args, **kwargs)
                return prediction._replace(reward=prediction.reward[:, None])
        """,
    )
    argv = ["check", "bad_model:WrongShape", "--env", "Pendulum-v1", "--kwargs", "hidden=[8]"]
    assert main(argv) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if " check_step_shapes " in line]
    assert line.startswith("FAILED")
    assert "reward" in line


def test_check_knows_the_arguments_that_a_class_passes_on(capsys):
    """``EnsembleModel(**kwargs)`` hands them to ``MLPModel``, which has no such argument."""
    assert main(["check", "ensemble", "--kwargs", "hiden=[8]"]) == 2
    assert "EnsembleModel has no argument 'hiden'. Did you mean 'hidden'?" in capsys.readouterr().err
    assert check_arguments("--kwargs", {"hidden": [8], "members": 3.0}, EnsembleModel) == {"hidden": [8], "members": 3}


def test_check_knows_the_kind_of_a_class(capsys):
    assert main(["check", "sb3_mbrl.imagination:BranchedRollouts"]) == 0
    assert "check_imagination_ends" in capsys.readouterr().out


def test_check_with_an_environment_takes_its_spaces(capsys, monkeypatch):
    seen = []

    def one_check(part):
        seen.append(part)

    monkeypatch.setattr("sb3_mbrl.testing.world_model_checks", lambda: (one_check,))
    assert main(["check", "ensemble", "--env", "Pendulum-v1", "--kwargs", "members=2", "elites=2"]) == 0
    (model,) = seen
    assert isinstance(model, EnsembleModel)
    assert (model.n_members, model.observation_space.shape) == (2, (3,))
    assert main(["check", "ensemble", "--kwargs", "members=2", "elites=2"]) == 0
    assert seen[1].home().name == "box"
    assert seen[1].world_model().n_members == 2
