"""One clear line for every mistake."""

import pytest
from stable_baselines3 import SAC

from sb3_mbrl.cli import main
from tests.cli.commands import QUICK, SMALL, train


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "which environment? --env ID"),
        (["train", "--env", "Pendulm-v1", "--steps", "10"], "Pendulm"),
        (["train", "--env", "CartPole-v1", "--steps", "10"], "Discrete"),
        (["train", "--env", "no_such_module:Env-v0", "--steps", "10"], "no_such_module"),
        (
            ["train", "--env", "MountainCarContinuous-v0"],
            "how long? --steps N (there is no preset for MountainCarContinuous-v0)",
        ),
        (["train", "--env", "Pendulm-v1"], "Pendulm"),
        (["train", "--env", "CartPole-v1", "--steps", "10"], "For Discrete actions there are Dyna (DQN)"),
        (["check", "pendulum"], "takes none of the kit's spaces"),
        (["train", "--env", "Pendulum-v1", "--steps", "0"], "--steps 0: give at least 1"),
        (["train", "--env", "Pendulum-v1", "--algo", "mbp"], "Did you mean 'mbpo'?"),
        (["train", "--env", "Pendulum-v1", "--world-model", "ensembel"], "Did you mean 'ensemble'?"),
        (["train", "--env", "Pendulum-v1", "--world-model-kwargs", "member=5"], "'member'"),
        (["train", "--env", "Pendulum-v1", "--world-model-kwargs", "members"], "write key=value"),
        (["train", "--env", "Pendulum-v1", "--imagination-kwargs", "horizn=5"], "Did you mean 'horizon'?"),
        (["train", "--env", "Pendulum-v1", "--imagination-kwargs", "freq=5000"], "max_age=200 is shorter than freq=5000"),
        (["train", "--env", "Pendulum-v1", "--set", "gradientsteps=5"], "Did you mean 'gradient_steps'?"),
        (["train", "--env", "Pendulum-v1", "--set", "real_ratio=5"], "give the share of real rows"),
        (["train", "--env", "Pendulum-v1", "--set", "seed=5"], "there is an option for it"),
        (["train", "--env", "Pendulum-v1", "--env-kwargs", "gravity=5"], "gravity"),
        (["train", "--env", "Pendulum-v1", "--plugin", "no_such_plugin"], "no module 'no_such_plugin'"),
        (["train", "--env", "Acrobot-v1", "--preset", "--steps", "10"], "no preset of mbpo for 'Acrobot-v1'"),
        (["train", "--env", "Pendulum-v1", "--load-replay-buffer", "gone.pkl"], "no replay buffer gone.pkl"),
        (["train", "--env", "Pendulum-v1", "--eval-every", "5", "--eval-episodes", "0"], "--eval-episodes 0: give at least 1"),
        (["train", "--resume"], "which run?"),
        (["train", "--resume", "--env", "Pendulum-v1"], "no run of mbpo on Pendulum-v1"),
        (["train", "--resume", "--output", "gone"], "not the folder of a run"),
        (["train", "--resume", "--output", "gone", "--seed", "1"], "--seed was decided when the run began"),
        (["train", "--resume", "--output", "gone", "--world-model-kwargs", "a=1"], "--world-model-kwargs was decided"),
        (["evaluate", "gone.zip", "--env", "Pendulum-v1"], "no file gone.zip"),
        (["evaluate", "gone.zip"], "there is no file gone.zip"),
        (["evaluate", "gone.zip", "--episodes", "0"], "give at least 1"),
        (["check", "nothing"], "nothing"),
        (["check", "mbpo"], "no world model, planner or imagination"),
        (["check", "ensemble", "--env", "Pendulum-v1", "--kwargs", "members=1"], "elites=5 of members=1"),
        (["check", "ensemble", "--env-kwargs", "g=1"], "--env-kwargs needs --env"),
        (["check", "branched", "--env", "Pendulum-v1"], "leave it out"),
        (["check", "ensemble", "--env", "Pendulm-v1"], "Pendulm"),
    ],
)
def test_mistakes_get_one_line(argv, message, capsys):
    assert main([*argv, *(["--no-progress"] if argv[0] == "train" else [])]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"sb3-mbrl {argv[0]}: ")
    assert message in lines[0]


def test_wrong_files_are_named(here, capsys):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save("sac.zip")
    (here / "text.zip").write_text("hello")
    (here / "text.pkl").write_text("hello")
    for path, message in (("sac.zip", "looks like a plain SAC file"), ("text.zip", "text.zip is not an agent that was saved")):
        assert main(["evaluate", path, "--env", "Pendulum-v1", "--algo", "mbpo"]) == 2
        assert message in capsys.readouterr().err
    assert train("--steps", "10", "--load-replay-buffer", "text.pkl") == 2
    assert "text.pkl is not a replay buffer" in capsys.readouterr().err


@pytest.mark.parametrize("pair", ["gradient_steps=abc", "tau=small"])
def test_a_word_where_a_number_belongs(pair, capsys):
    assert main(["train", "--env", "Pendulum-v1", "--set", pair]) == 2
    assert f"--set {pair}: give a number (the default is " in capsys.readouterr().err


def test_paths_and_devices_that_do_not_exist(here, capsys):
    (here / "file").write_text("")
    for argv, words in (
        (["train", *SMALL, *QUICK, "--steps", "5", "--output", "file"], "--output file: this is a file"),
        (["train", *SMALL, *QUICK, "--steps", "5", "--output", "/proc/run"], "--output /proc/run: it cannot be written to"),
        (["train", *SMALL, "--device", "foo"], "--device foo: "),
        (["check", "os:path"], "'os:path' was imported, but "),
        (["evaluate", "/nonexistent"], "there is no file /nonexistent"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
