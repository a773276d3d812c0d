"""``sb3-mbrl evaluate``."""

from sb3_mbrl.cli import main
from tests.cli.commands import train


def test_an_agent_is_not_evaluated_elsewhere(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    assert main(["evaluate", "run", "--env", "MountainCarContinuous-v0"]) == 2
    assert "the agent was not trained in MountainCarContinuous-v0" in capsys.readouterr().err


def test_an_agent_of_a_board_plays_against_random_moves_from_both_seats(here, capsys):
    """Regression: it played both seats itself, without knowing the legal moves; the mean return said nothing."""
    options = ["--env", "TicTacToe-v0", "--steps", "24", "--eval-every", "12", "--eval-episodes", "3", "--no-progress"]
    settings = ["--set", "num_simulations=4", "learning_starts=10", "gradient_steps=1"]
    assert main(["train", "--algo", "muzero", *options, *settings, "--output", "run"]) == 0
    said = capsys.readouterr().out
    assert said.count("Elo rating") == 3, "at the beginning, in the middle and at the end"
    assert "TicTacToe-v0, 3 games from each seat against random moves: " in said
    assert "of 6 (" in said
    assert "illegal" not in said
    assert (here / "run" / "best_model.zip").is_file()
