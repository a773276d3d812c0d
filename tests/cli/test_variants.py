"""``sb3-mbrl train --variants``."""

import pytest

from sb3_mbrl import MBPO
from sb3_mbrl.cli import main
from tests.cli.commands import QUICK

COMMAND = [
    "train",
    "--env",
    "Pendulum-v1",
    "--no-progress",
    "--eval-episodes",
    "1",
    "--device",
    "cpu",
    "--steps",
    "60",
    *QUICK,
]


def test_variants_differ_in_their_world_model_alone(here, capsys):
    assert main([*COMMAND, "--variants", "model-off", "mlp", "--output", "runs", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    off, mlp = (MBPO.load(here / "runs" / name / "model.zip", device="cpu") for name in ("model-off", "mlp"))
    assert off.world_model is None
    assert type(mlp.world_model).__name__ == "MLPModel"
    assert (off.gradient_steps, off.learning_starts, off.seed, off.num_timesteps) == (
        mlp.gradient_steps,
        mlp.learning_starts,
        mlp.seed,
        60,
    )
    results = out.partition("--- results")[2].splitlines()
    assert results[1].startswith("model-off  Pendulum-v1, 1 episodes: mean return -")
    assert results[2].startswith("mlp        Pendulum-v1, 1 episodes: mean return -")


def test_the_run_as_given_is_a_variant(here):
    assert main([*COMMAND, "--variants", "model", "--world-model", "mlp", "--output", "runs"]) == 0
    assert (here / "runs" / "model" / "model.zip").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "Pendulum-v1", "--resume"], "--variants begins new runs"),
        ([], "which environment?"),
        (["--env", "Pendulum-v1", "--world-model", "mlp"], "leave --world-model out"),
    ],
)
def test_wrong_combinations_are_refused(here, options, message, capsys):
    assert main(["train", "--variants", "model", "model-off", *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["train", "--env", "Pendulum-v1", "--variants", "mlp", "mlp"]) == 2
    assert "name each once" in capsys.readouterr().err
