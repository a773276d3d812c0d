"""``sb3-mbrl check``."""

import re

from sb3_mbrl.cli import main
from sb3_mbrl.cli.values import check_arguments
from sb3_mbrl.models.ensemble import EnsembleModel
from tests.cli.commands import module


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
    (line,) = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert " check_step_shapes " in line
    assert "reward" in line
    assert re.search(r"^ +where: bad_model\.py:\d+ \(WrongShape\.step\)$", out, flags=re.M)
    assert "skipped  check_save_load" in out
    assert "not tried, since check_step_shapes has failed" in out


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
    model = seen[0].instance
    assert isinstance(model, EnsembleModel)
    assert (model.n_members, model.observation_space.shape) == (2, (3,))
    assert main(["check", "ensemble", "--kwargs", "members=2", "elites=2"]) == 0
    assert seen[1].home().name == "box"
    assert seen[1].world_model().n_members == 2
