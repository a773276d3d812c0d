"""The evaluation callback: what it logs, when, and that training is not disturbed."""

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import KVWriter, Logger

import sb3_mbrl  # noqa: F401  (registers the boards)
from sb3_mbrl.envs.boards import BoardEvalCallback, RandomPlayer
from sb3_mbrl.envs.boards.elo import elo_ratings
from sb3_mbrl.envs.boards.evaluation import Score
from sb3_mbrl.envs.boards.players import AlphaBetaPlayer


class Log(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        rows = {key: value for key, value in key_values.items() if key.startswith("boards/")}
        if rows:
            self.rows.append((step, rows))

    def close(self):
        pass


def dqn(steps, callback=None, seed=0):
    agent = DQN("MlpPolicy", "TicTacToe-v0", learning_starts=20, buffer_size=200, batch_size=8, device="cpu", seed=seed)
    log = Log()
    agent.set_logger(Logger(None, [log]))
    agent.learn(steps, callback=callback)
    return agent, log.rows


def test_results_are_logged(tmp_path):
    players = [RandomPlayer(), AlphaBetaPlayer(2)]
    callback = BoardEvalCallback(
        "TicTacToe-v0",
        players,
        every=40,
        repeats=3,
        earlier=2,
        folder=tmp_path / "old",
        best_model_save_path=tmp_path / "best",
    )
    _, rows = dqn(100, callback)
    assert [step for step, _ in rows] == [0, 40, 80, 100]
    assert [step for step, _, _ in callback.history] == [0, 40, 80, 100]
    for number, (step, row) in enumerate(rows):
        names = ["random", "alpha_beta_2", *(["earlier"] if number else [])]
        kinds = ("win", "draw", "loss")
        keys = {f"boards/{name}_{kind}" for name in names for kind in kinds}
        assert set(row) == keys | {"boards/points", "boards/illegal", "boards/elo"}
        for name in names:
            assert sum(row[f"boards/{name}_{kind}"] for kind in kinds) == pytest.approx(1)
        scores = [callback.results[f"step_{step}", player.name] for player in players]
        assert [score.games for score in scores] == [6, 6]
        assert row["boards/points"] == scores[0].plus(scores[1]).points
    assert {second for first, second in callback.results if first == "step_100"} == {
        *("random", "alpha_beta_2"),
        *("step_0", "step_80"),
    }, "two earlier versions: the first and the newest"
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [f"step_{n}.zip" for n in (0, 100, 40, 80)]
    assert rows[-1][1]["boards/elo"] == pytest.approx(elo_ratings(callback.results, "random")["step_100"])
    best = max(points for _, points, _ in callback.history)
    assert callback.history[-1][1] <= best
    assert DQN.load(tmp_path / "best" / "best_model.zip").num_timesteps in [
        n for n, points, _ in callback.history if points == best
    ]


def test_training_is_not_disturbed():
    """The same weights with and without evaluations, with earlier versions being loaded."""
    plain, _ = dqn(120)
    callback = BoardEvalCallback("TicTacToe-v0", [RandomPlayer()], every=30, repeats=2, earlier=2)
    watched, _ = dqn(120, callback)
    assert len(callback.history) == 5
    for name, weights in plain.policy.state_dict().items():
        assert np.array_equal(weights.numpy(), watched.policy.state_dict()[name].numpy()), name
    assert plain.replay_buffer.pos == watched.replay_buffer.pos


def test_masks_are_given_to_agents_that_take_them():
    """Without masks an untrained agent loses by illegal moves, with masks never."""
    contrib = pytest.importorskip("sb3_contrib")
    for cls, some in ((PPO, True), (contrib.MaskablePPO, False)):
        agent = cls("MlpPolicy", "ConnectFour-v0", n_steps=16, batch_size=16, device="cpu", seed=0)
        callback = BoardEvalCallback("ConnectFour-v0", [RandomPlayer()], every=16, repeats=5)
        agent.learn(16, callback=callback)
        assert any(score.illegal for score in callback.results.values()) is some


def test_a_second_training_begins_anew():
    callback = BoardEvalCallback("TicTacToe-v0", [RandomPlayer()], every=20, repeats=1)
    agent, _ = dqn(40, callback)
    agent.learn(20, reset_num_timesteps=False, callback=callback)
    assert [step for step, _, _ in callback.history] == [0, 20, 40, 60]
    agent.learn(20, callback=callback)
    assert [step for step, _, _ in callback.history] == [0, 20]


def test_wins_of_a_known_player():
    """An agent that is replaced by a perfect player's moves: its shares and its rating are known."""
    callback = BoardEvalCallback("TicTacToe-v0", [RandomPlayer()], repeats=10)
    agent, _ = dqn(1)

    def lose(observation, **kwargs):
        return np.full(len(observation), 0), None

    agent.predict = lose
    log = Log()
    agent.set_logger(Logger(None, [log]))
    agent.learn(1, callback=callback)
    score = callback.results["step_0", "random"]
    assert score.wins == 0
    assert score.losses == score.illegal == 20
    rating = elo_ratings({("a", "b"): Score(losses=20)}, "b")["a"]
    assert log.rows[0][1]["boards/elo"] == pytest.approx(rating)
    assert rating == pytest.approx(-400 * np.log10(41), abs=0.01)


@pytest.mark.parametrize("players", [[], [RandomPlayer(), RandomPlayer()], [RandomPlayer(name="earlier")]])
def test_players_need_names_of_their_own(players):
    with pytest.raises(ValueError, match="each a name of its own"):
        BoardEvalCallback("TicTacToe-v0", players)
