"""rl-zoo3's command line with our algorithms."""

import sys
from pathlib import Path

import pytest

from sb3_mbrl import MBPO, Dyna, DynaQ, model_based, zoo


def test_our_file_of_settings_is_the_default():
    given = ["train", "--algo", "mbpo", "--env", "Pendulum-v1"]
    assert zoo.with_settings(given)[:-1] == [*given, "--conf-file"]
    assert zoo.with_settings(given)[-1].endswith("sb3_mbrl/hyperparams/mbpo.yml")
    assert zoo.with_settings(["train", "--algo=mbpo"])[-1].endswith("mbpo.yml")


def test_without_settings_of_ours_those_of_the_base_class_are_taken():
    """Regression: ``dyna`` and ``mb_td3`` ended with the zoo's FileNotFoundError."""
    pytest.importorskip("rl_zoo3")
    for algo, file in (("dyna", "dqn.yml"), ("mb_td3", "td3.yml"), ("mb_crossq", "crossq.yml")):
        arguments = zoo.with_settings(["train", "--algo", algo, "--env", "CartPole-v1"])
        assert arguments[-2] == "--conf-file"
        assert arguments[-1].endswith(f"hyperparams/{file}")
        assert Path(arguments[-1]).is_file()
    with pytest.raises(SystemExit, match="no settings of dyna_q in the package"):
        zoo.with_settings(["train", "--algo", "dyna_q", "--env", "DynaMaze-v0"])


@pytest.mark.parametrize(
    "given",
    [["train", "--algo", "sac"], ["train", "--algo", "mbpo", "-conf", "own.yml"], ["enjoy", "--algo", "mbpo"], ["train"], []],
)
def test_everything_else_is_left_to_the_zoo(given):
    assert zoo.with_settings(given) == given


def test_our_algorithms_by_name():
    from sb3_contrib import TQC

    algorithms = zoo.algorithms()
    assert (algorithms["mbpo"], algorithms["dyna"], algorithms["dyna_q"]) == (MBPO, Dyna, DynaQ)
    assert algorithms["mb_tqc"] is model_based(TQC)
    assert {"mb_td3", "mb_ddpg", "mb_crossq", "mb_qrdqn"} < set(algorithms)


def test_the_base_classes_are_in_the_algorithms_records():
    derived = {"mb_td3": "td3", "mb_ddpg": "ddpg", "mb_tqc": "tqc", "mb_crossq": "crossq", "mb_qrdqn": "qrdqn"}
    assert zoo.bases() == {"mbpo": "sac", "dhmbpo": "sac", "svg": "sac", "dyna": "dqn", **derived}


class Trial:
    """A stand-in for a trial of Optuna that takes the last choice and the highest number."""

    def __init__(self) -> None:
        self.params = {}

    def suggest_int(self, name, low, high):
        return self.params.setdefault(name, high)

    def suggest_categorical(self, name, choices):
        return self.params.setdefault(name, choices[-1])


def test_a_trial_and_what_is_made_of_it_later_are_the_same():
    """The zoo samples with one table and rebuilds a finished trial's arguments with another."""
    trial = Trial()
    sampled = zoo.sampler(lambda *_: {"tau": 0.1, "gradient_steps": 3})(trial, 1, 1, {})
    rebuilt = zoo.converter(lambda rest: {"tau": 0.1, "gradient_steps": 3, **rest})(trial.params)
    assert sampled == rebuilt
    assert set(trial.params) == set(zoo.OWN_PARAMETERS)
    assert sampled["gradient_steps"] == 3 * 20  # times the last choice of the factor
    assert sampled["imagination_kwargs"] == {"horizon": 10, "starts_per_step": 20, "exploration": 0.5}
    MBPO("MlpPolicy", "Pendulum-v1", device="cpu", **sampled)


def test_without_the_zoo_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install "sb3-mbrl\[zoo\]"'):
        zoo.main(["train"])


def test_train_and_enjoy(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    monkeypatch.chdir(tmp_path)
    before = list(sys.argv)
    common = ["--algo", "mbpo", "--env", "Pendulum-v1", "-f", str(tmp_path)]
    small = ["-params", "learning_starts:50", "gradient_steps:1", "world_model_kwargs:dict(members=2,elites=1,hidden=[8])"]
    zoo.main(["train", *common, "-n", "60", "--eval-freq", "-1", *small])
    assert (tmp_path / "mbpo" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()
    zoo.main(["enjoy", *common, "-n", "20", "--no-render"])
    assert sys.argv == before
    with pytest.raises(SystemExit, match="there are train and enjoy"):
        zoo.main(["plot_train"])


def test_optuna_searches_the_model_too(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    monkeypatch.chdir(tmp_path)
    search = ["-optimize", "--n-trials", "2", "--n-startup-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1"]
    small = ["learning_starts:30", "world_model_kwargs:dict(members=2,elites=1,hidden=[8])", "fit_kwargs:dict(max_batches=2)"]
    zoo.main(["train", "--algo", "mbpo", "--env", "Pendulum-v1", "-f", str(tmp_path), "-n", "40", *search, "-params", *small])
    (report,) = (tmp_path / "mbpo").glob("report_Pendulum-v1_2-trials-*.csv")
    rows = report.read_text().splitlines()
    assert len(rows) == 1 + 2
    assert all(f"params_{name}" in rows[0] for name in zoo.OWN_PARAMETERS)
