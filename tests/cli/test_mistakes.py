"""One clear line for every mistake."""

import os

import gymnasium as gym
import pytest
from stable_baselines3 import SAC

from sb3_mbrl.cli import main
from tests.cli.commands import QUICK, SMALL, train


def test_a_buffer_from_elsewhere_is_refused(capsys):
    other = SAC("MlpPolicy", "MountainCarContinuous-v0", buffer_size=10, device="cpu")
    other.save_replay_buffer("other.pkl")
    assert train("--steps", "10", "--load-replay-buffer", "other.pkl") == 2
    assert (
        "other.pkl does not fit this run: The replay buffer was recorded with observation_space Box" in capsys.readouterr().err
    )
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save_replay_buffer("single.pkl")
    assert train("--steps", "10", "--load-replay-buffer", "single.pkl", "--n-envs", "2") == 2
    assert "recorded with n_envs 1; this agent has 2" in capsys.readouterr().err


def test_a_run_is_not_overwritten(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    before = (here / "run" / "model.zip").stat().st_mtime_ns
    assert train("--steps", "10", "--output", "run") == 2
    assert "run holds a run already: go on with it by --resume" in capsys.readouterr().err
    assert (here / "run" / "model.zip").stat().st_mtime_ns == before


def test_an_agent_is_not_evaluated_elsewhere(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    assert main(["evaluate", "run", "--env", "MountainCarContinuous-v0"]) == 2
    assert "the agent was not trained in MountainCarContinuous-v0" in capsys.readouterr().err


def test_traceback_on_request():
    with pytest.raises(gym.error.NameNotFound):
        main(["train", "--env", "Pendulm-v1", "--steps", "10", "--traceback"])


@pytest.mark.parametrize("pair", ["gradient_steps=abc", "tau=small"])
def test_a_word_where_a_number_belongs(pair, capsys):
    assert main(["train", "--env", "Pendulum-v1", "--set", pair]) == 2
    assert f"--set {pair}: give a number (the default is " in capsys.readouterr().err


def test_ctrl_c_before_anything_began(monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_mbrl.cli.training.train", interrupt)
    assert main(["train", "--env", "Pendulum-v1"]) == 130
    assert not os.path.exists("runs")


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
