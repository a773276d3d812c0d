"""``sb3-mbrl plot plan``."""

import shutil

import pytest
from stable_baselines3 import SAC

from sb3_mbrl.cli import main
from tests.cli.commands import train

PLAN = ["plot", "plan", "run", "--particles", "3"]


def test_a_planner_from_train_to_picture(here, capsys):
    argv = ["--set", 'planner_kwargs={"horizon":4,"population":8,"iterations":1}', "learning_starts=50", "fit_freq=50"]
    argv += ["--world-model-kwargs", "members=2", "elites=2", "hidden=[16]", "--no-preset", "--no-progress"]
    main(
        ["train", "--algo", "pets", "--env", "Pendulum-v1", "--steps", "60", "--eval-episodes", "0", "--output", "run", *argv]
    )
    capsys.readouterr()
    assert main([*PLAN, "--moments", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" steps were")[0] for line in lines[:2]] == ["step    0: 4", "step    4: 4"]
    assert lines[2].startswith("Within the band of 90 % of the rollouts: ")
    assert (here / "run" / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert main([*PLAN, "--horizon", "9"]) == 2
    assert "the plans of ICEM are 4 steps long" in capsys.readouterr().err
    # Where the picture really is; with --replan the plan changes, which says nothing of the model.
    assert main([*PLAN, "--moments", "1", "--replan", "--output", "mine"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "Image: mine.png"
    assert "Within the band" not in out
    assert (here / "mine.png").is_file()


def test_discrete_actions_of_a_table(here, capsys):
    """The environment used to be given an array, in which it looked up a transition."""
    argv = ["--env", "FrozenLake-v1", "--steps", "50", "--eval-episodes", "0", "--output", "run", "--no-progress"]
    assert main(["train", "--algo", "dyna_q", *argv]) == 0
    assert main(PLAN) == 0


def test_a_policys_expectations_and_mistakes(here, capsys):
    assert train("--steps", "60", "--output", "run") == 0
    assert main([*PLAN, "--horizon", "3", "--columns", "2", "--output", "other/a.svg"]) == 0
    assert "obs[2]" in (here / "other" / "a.svg").read_text()
    capsys.readouterr()
    for argv, message in (
        (["--columns", "7"], "there are the columns 0 to 2"),
        (["--particles", "0"], "particles=0: give a whole number from 1 on"),
        (["--env", "MountainCarContinuous-v0"], "the agent was not trained in MountainCarContinuous-v0"),
        (["--output", "a.xyz"], "xyz"),
    ):
        assert main([*PLAN, *argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("sb3-mbrl plot plan: ")
        assert message in lines[0]


def test_an_agent_without_a_model(capsys):
    assert train("--steps", "10", "--output", "off", "--world-model", "none") == 0
    assert main(["plot", "plan", "off"]) == 2
    assert "MBPO has no world model" in capsys.readouterr().err


def test_without_matplotlib(monkeypatch, capsys):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save("sac.zip")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plot", "plan", "sac.zip", "--env", "Pendulum-v1"]) == 2
    assert 'pip install "sb3-mbrl[plots]"' in capsys.readouterr().err


def test_a_picture_has_to_be_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plot"])
    assert "IMAGE" in capsys.readouterr().err


def test_a_dream_from_train_to_picture(here, capsys):
    argv = ["--set", "batch_size=2", "batch_length=4", "horizon=2", "train_freq=16", "learning_starts=16", "--no-progress"]
    argv += ["--world-model-kwargs", "deter=16", "units=8", "hidden=8", "stoch=3", "classes=4", "blocks=4"]
    argv += ["--env", "CartPole-v1", "--steps", "48", "--eval-episodes", "0", "--output", "run", "--no-preset"]
    assert main(["train", "--algo", "dreamer_v3", *argv]) == 0
    capsys.readouterr()
    assert main(["plot", "dream", "run", "--context", "3", "--horizon", "4"]) == 0
    assert capsys.readouterr().out.startswith("After 3 observations the model imagined ")
    assert (here / "run" / "dream.gif").read_bytes().startswith(b"GIF8")
    # A file alone says which algorithm it is of.
    shutil.copy(here / "run" / "model.zip", here / "alone.zip")
    assert main(["plot", "dream", "alone.zip", "--env", "CartPole-v1", "--context", "3", "--output", "alone"]) == 0
    assert capsys.readouterr().out.endswith("Image: alone.gif\n")
    for wrong, words in ((["--fps", "0"], "--fps 0: give at least 1"), (["--output", "x.jpg"], "give the name of a .gif")):
        assert main(["plot", "dream", "run", "--context", "3", *wrong]) == 2
        assert words in capsys.readouterr().err
    assert main(["plot", "dream", "run", "--context", "0"]) == 2
    assert "context=0: give at least 1" in capsys.readouterr().err
    assert main(["plot", "dream", "run", "--context", "600"]) == 2
    assert "the episode was over after" in capsys.readouterr().err
