"""The learning benchmark of boards: its record, and going on after an interruption."""

import json
import sys

import pytest

from tests.examples.benchmark_runs import records

import boards  # isort: skip (found by benchmark_runs)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    game = boards.Game("TicTacToe-v0", 96, 32)
    preset = {**boards.MuZero.preset("TicTacToe-v0"), "num_simulations": 3, "learning_starts": 16, "gradient_steps": 1}
    monkeypatch.setattr(boards, "GAMES", {"tictactoe": game})
    monkeypatch.setattr(
        boards.MuZero, "preset", lambda name: dict(preset, world_model_kwargs={"value_range": 1.0, "units": 8})
    )
    monkeypatch.setattr(boards, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(boards, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path / "results" / "muzero-tictactoe" / "muzero-seed7.json"


def play(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["boards.py", "tictactoe", "--seed", "7", *options])
    boards.main()


def test_an_interrupted_run_goes_on_where_it_was(quick, monkeypatch):
    play(monkeypatch, "--steps", "48")
    first = json.loads(quick.read_text())
    assert [point["step"] for point in first["curve"]] == [0, 32, 48]
    play(monkeypatch, "--steps", "96")
    record = records.read_record(quick)
    assert record["curve"][:3] == first["curve"]
    assert [point["step"] for point in record["curve"][3:]] == [80, 96]
    for point in record["curve"]:
        # The whole tree was walked: every reply of the opponent, from both seats.
        assert point["wins"] + point["draws"] + point["losses"] > 300
        assert point["points"] == pytest.approx(
            (point["wins"] + point["draws"] / 2) / sum(point[k] for k in ("wins", "draws", "losses")), abs=1e-3
        )
    assert record["curve"][-1]["cpu_s"] > first["curve"][-1]["cpu_s"]


def test_a_finished_run_is_left_alone(quick, monkeypatch):
    play(monkeypatch, "--steps", "32")
    before = quick.read_text()
    play(monkeypatch, "--steps", "32")
    assert quick.read_text() == before
