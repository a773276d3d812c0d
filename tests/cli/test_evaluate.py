"""``sb3-mbrl evaluate``."""

from sb3_mbrl.cli import main
from tests.cli.commands import train


def test_an_agent_is_not_evaluated_elsewhere(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    assert main(["evaluate", "run", "--env", "MountainCarContinuous-v0"]) == 2
    assert "the agent was not trained in MountainCarContinuous-v0" in capsys.readouterr().err
