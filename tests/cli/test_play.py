"""``sb3-mbrl play``: a person's input, the agent's thoughts, ends."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest

from sb3_mbrl import Dyna
from sb3_mbrl.cli import main, play
from sb3_mbrl.cli.run_folder import Saved
from sb3_mbrl.envs.boards import TIC_TAC_TOE, ConnectFour, TicTacToe
from tests.envs.boards.toy_agents import Exact, FirstSquare


@pytest.fixture
def typed(monkeypatch):
    """Type lines; the input ends after the last."""

    def type_lines(*lines):
        rest = iter(lines)

        def read(prompt=""):
            print(prompt)
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", read)

    return type_lines


@pytest.fixture
def against(monkeypatch, tmp_path):
    """Play against an agent that was never saved."""

    def run(agent, *options, env=None):
        env = env or TicTacToe()
        agent.observation_space, agent.action_space = env.observation_space, env.action_space
        name = f"{type(env).__name__}-v0"
        monkeypatch.setattr(play, "load_saved", lambda args: Saved(agent, name, {}, tmp_path))
        return main(["play", "model.zip", *options])

    return run


def test_a_whole_game(typed, against, capsys):
    """A person who plays badly: the perfect agent wins."""
    typed("0", "1", "3", "n")
    assert against(Exact(TIC_TAC_TOE)) == 0
    out = capsys.readouterr().out
    assert "You play TicTacToe-v0 against Exact. Type the number of a move, or q to quit." in out
    assert "X 1 2\n3 4 5\n6 7 8" in out
    assert "The agent plays 4: row 1, column 1." in out
    assert "X X O\nX O 5\nO 7 8" in out
    assert "The agent has won." in out
    assert out.endswith("Games won: 0 by you, 1 by the agent; 0 drawn. Goodbye.\n")


def test_the_agent_may_begin(typed, against, capsys):
    typed("q")
    assert against(Exact(TIC_TAC_TOE), "--seat", "second") == 0
    out = capsys.readouterr().out
    assert out.index("The agent plays 0: row 0, column 0.") < out.index("Your move:")
    assert "Goodbye" in out


def test_seats_change_between_games(typed, against, capsys):
    typed("0", "1", "3", "y", "q")
    assert against(Exact(TIC_TAC_TOE)) == 0
    second = capsys.readouterr().out.split("Another game")[1]
    assert second.index("The agent plays 0") < second.index("Your move:")


def test_input_is_checked(typed, against, capsys):
    typed("", "five", "-1", "4.0", "9" * 5000, "4", "4", "0", "q")
    assert against(FirstSquare()) == 0
    out = capsys.readouterr().out
    assert "'' is not a move. Type the number of a move, or q to quit. Legal moves: 0 1 2 3 4 5 6 7 8" in out
    assert "'five' is not a move." in out
    assert "'-1' is not a move." in out
    assert "'4.0' is not a move." in out
    assert "is not legal here. Legal moves: 0 1 2 3 4 5 6 7 8" in out
    assert "4 is not legal here. Legal moves: 1 2 3 5 6 7 8" in out
    assert "0 is not legal here. Legal moves: 1 2 3 5 6 7 8" in out


@pytest.mark.parametrize("word", ["q", "Q", " quit ", "exit"])
def test_it_ends_when_asked(word, typed, against, capsys):
    typed("4", word, "0")
    assert against(Exact(TIC_TAC_TOE)) == 0
    assert capsys.readouterr().out.endswith("Games won: 0 by you, 0 by the agent; 0 drawn. Goodbye.\n")


@pytest.mark.parametrize("lines", [(), ("4",), ("0", "1", "3")], ids=["at_once", "in_a_game", "after_one"])
def test_the_end_of_the_input_is_polite(lines, typed, against, capsys):
    typed(*lines)
    assert against(Exact(TIC_TAC_TOE)) == 0
    assert capsys.readouterr().out.endswith("Goodbye.\n")


def test_bytes_that_are_no_text(monkeypatch, against, capsys):
    answers = iter([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), EOFError()])

    def read(prompt=""):
        raise next(answers)

    monkeypatch.setattr(builtins, "input", read)
    assert against(FirstSquare()) == 0
    assert "'?' is not a move" in capsys.readouterr().out


def test_an_illegal_move_of_the_agent_loses(typed, against, capsys):
    typed("0", "n")
    assert against(FirstSquare()) == 0
    out = capsys.readouterr().out
    assert "This is not a legal move, and loses the game." in out
    assert "You have won." in out
    assert "Games won: 1 by you, 0 by the agent" in out


class Searcher(Exact):
    """An agent that searches: it prefers the moves with high numbers."""

    def search(self, obs, action_masks=None, num_simulations=7, deterministic=False):
        self.asked = (obs.shape, action_masks.shape, num_simulations, deterministic)
        visits = np.where(action_masks, np.arange(9), 0)
        return SimpleNamespace(
            action=visits.argmax(1),
            visits=visits,
            policy=visits / visits.sum(),
            q=np.where(action_masks, np.linspace(-1, 1, 9), 0.0),
            value=np.array([1.0]),
            tree=SimpleNamespace(
                prior=np.where(action_masks, 0.125, 0.0)[:, None], depth=np.array([3]), path=lambda row: [8, 0, 7]
            ),
        )


def test_what_the_search_thinks_is_shown(typed, against, capsys):
    """The numbers of the table, in the order of visits, of the moves that are legal."""
    typed("4")
    agent = Searcher(TIC_TAC_TOE)
    assert against(agent, "--simulations", "30") == 0
    assert agent.asked == ((1, 2, 3, 3), (1, 9), 30, True)
    out = capsys.readouterr().out
    lines = out[out.index("Value of the position") :].splitlines()
    assert (
        lines[0]
        == "Value of the position: +1.00 (32 simulations, 3 moves deep; 1: the player to move wins, -1: the other one)"
    )
    assert lines[1].split() == ["move", "visits", "value", "prior", "policy"]
    assert lines[2].split() == ["8:", "row", "2,", "column", "2", "8", "+1.00", "12", "%", "25", "%"]
    assert lines[9].split() == ["0:", "row", "0,", "column", "0", "0", "-", "12", "%", "0", "%"]
    assert lines[10:12] == ["Expected moves: 8 0 7", "The agent plays 8: row 2, column 2."]


def test_hints_and_silence(typed, against, capsys):
    typed("h")
    assert against(Searcher(TIC_TAC_TOE), "--no-thoughts", "--seat", "second") == 0
    out = capsys.readouterr().out
    assert out.count("Value of the position") == 1
    assert out.index("The agent plays") < out.index("Value of the position"), "only when the person asks"
    typed("h")
    assert against(FirstSquare()) == 0
    assert "This agent does not search: it has no thoughts to show." in capsys.readouterr().out


def test_long_tables_are_cut():
    visits = np.arange(12)[None]
    many = SimpleNamespace(visits=visits, q=visits / 12, policy=visits / 66, value=np.array([0.5]))
    wide = SimpleNamespace(action_masks=lambda: np.ones(12, bool), describe=str)
    lines = play.thoughts(wide, many).splitlines()
    assert len(lines) == 1 + 1 + 9 + 1
    assert lines[-1] == "  and 3 more"
    assert lines[1].split() == ["move", "visits", "value", "policy"], "no priors without a tree"


def test_connect_four(typed, against, capsys):
    class Middle(FirstSquare):
        def predict(self, observation, **kwargs):
            return np.full(len(observation), 3), None

    typed("3", "3", "q")
    assert against(Middle(), env=ConnectFour()) == 0
    out = capsys.readouterr().out
    assert ". . . X . . .\n0 1 2 3 4 5 6" in out
    assert "The agent plays column 3." in out


def test_observations_are_normalised_for_agents_that_were_trained_so(typed, against, capsys):
    class Halved(FirstSquare):
        def get_vec_normalize_env(self):
            return SimpleNamespace(normalize_obs=lambda obs: obs / 2)

        def predict(self, observation, **kwargs):
            self.seen = observation
            return super().predict(observation)

    typed("4")
    agent = Halved()
    assert against(agent) == 0
    assert agent.seen.sum() == 0.5


def test_simulations_need_a_search(typed, against, capsys):
    typed("q")
    assert against(FirstSquare(), "--simulations", "10") == 2
    assert "--simulations 10: FirstSquare does not search" in capsys.readouterr().err
    for wrong in ("0", "99999999999"):  # the second was a traceback at the agent's first move
        assert against(Searcher(TIC_TAC_TOE), "--simulations", wrong) == 2
        assert f"--simulations {wrong}: give at least 1, and at most 1000000" in capsys.readouterr().err


def test_a_saved_agent_plays(here, typed, capsys):
    Dyna("MlpPolicy", "TicTacToe-v0", world_model=None, buffer_size=100, device="cpu", seed=0).save("agent.zip")
    typed("4")
    assert main(["play", "agent.zip", "--env", "TicTacToe-v0"]) == 0
    assert "against Dyna" in capsys.readouterr().out
    assert main(["play", "agent.zip", "--env", "ConnectFour-v0"]) == 2
    assert "the agent was not trained in ConnectFour-v0" in capsys.readouterr().err
    assert main(["play", "agent.zip"]) == 2
    assert "which environment? --env ID" in capsys.readouterr().err
    assert main(["play", "missing.zip"]) == 2
    assert "there is no file missing.zip" in capsys.readouterr().err


def test_games_of_one_player_are_refused(here, typed, capsys):
    Dyna("MlpPolicy", "CartPole-v1", world_model=None, buffer_size=100, device="cpu", seed=0).save("agent.zip")
    assert main(["play", "agent.zip", "--env", "CartPole-v1"]) == 2
    assert "CartPole-v1 is not a game of two players" in capsys.readouterr().err
