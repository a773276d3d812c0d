"""Players: legal moves, seeds, masks, agents and checkpoints."""

import random

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO

from sb3_mbrl import Dyna
from sb3_mbrl.envs.boards import (
    TIC_TAC_TOE,
    AgentPlayer,
    AlphaBetaPlayer,
    ConnectFour,
    PerfectPlayer,
    RandomPlayer,
    TicTacToe,
    TwoPlayerAEC,
)
from sb3_mbrl.envs.boards.minimax import best_moves
from tests.envs.boards.fake_aec import Race
from tests.envs.boards.toy_agents import Exact, FirstSquare


def table(*moves):
    env = TicTacToe()
    env.reset(options={"moves": moves})
    return env


def test_random_moves_are_legal_all_possible_and_repeatable():
    player, tables = RandomPlayer(seed=3), [table(4, 0, 8)] * 200
    moves = player.choose(tables)
    assert set(moves) == {1, 2, 3, 5, 6, 7}
    player.seed(3)
    assert player.choose(tables) == moves
    assert player.choose(tables) != moves


def test_perfect_moves_are_all_best_ones():
    moves = PerfectPlayer(seed=0).choose([table(4)] * 100 + [table(0)] * 10)
    assert set(moves[:100]) == set(best_moves(TIC_TAC_TOE, table(4).position)) == {0, 2, 6, 8}
    assert set(moves[100:]) == {4}


def test_alpha_beta_has_a_depth():
    assert AlphaBetaPlayer(3).name == "alpha_beta_3"
    assert AlphaBetaPlayer(2).choose([table(0, 4, 1)]) == [2]
    with pytest.raises(ValueError, match="depth=0"):
        AlphaBetaPlayer(0)


@pytest.mark.parametrize("player", [PerfectPlayer(), AlphaBetaPlayer()], ids=str)
def test_players_that_do_not_know_the_rules(player):
    env = TwoPlayerAEC(Race())
    env.reset()
    with pytest.raises(TypeError, match="does not know the rules"):
        player.choose([env])


def test_an_agent_is_asked_once_for_all_games():
    agent = Exact(TIC_TAC_TOE)
    player = AgentPlayer(agent, "exact")
    assert player.takes_masks
    assert player.choose([table(0), table(0, 4, 1), table(0, 3, 1, 4)]) == [4, 2, 2]
    assert agent.batches == [(3, True)]


def test_an_agent_without_masks_gets_none():
    player = AgentPlayer(FirstSquare())
    assert not player.takes_masks
    assert player.choose([table(0), table()]) == [0, 0]


def test_agents_of_ours_get_masks_when_they_plan():
    """Named after a fault: predict() of every agent takes **kwargs, but only planners know what to do with masks."""
    agent = Dyna("MlpPolicy", "TicTacToe-v0", world_model=None, buffer_size=100, device="cpu", seed=0)
    assert not AgentPlayer(agent).takes_masks
    (move,) = AgentPlayer(agent).choose([table(4)])
    assert 0 <= move < 9
    agent.acting = object()
    assert AgentPlayer(agent).takes_masks


def test_further_arguments_of_predict():
    class Searching(Exact):
        def predict(self, observation, action_masks=None, num_simulations=8, **kwargs):
            self.simulations = num_simulations
            return super().predict(observation, action_masks=action_masks, **kwargs)

    agent = Searching(TIC_TAC_TOE)
    AgentPlayer(agent, deterministic=False, num_simulations=25).choose([table()])
    assert agent.simulations == 25
    assert agent.batches == [(1, False)]


def test_agents_of_sb3_play():
    agent = PPO("MlpPolicy", "TicTacToe-v0", n_steps=8, batch_size=8, device="cpu", seed=0)
    moves = AgentPlayer(agent).choose([table(), table(4)])
    assert all(0 <= move < 9 for move in moves)


def test_agents_of_sb3_contrib_play_legal_moves():
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.MaskablePPO("MlpPolicy", "TicTacToe-v0", n_steps=8, batch_size=8, device="cpu", seed=0)
    tables = [table(), table(4), table(4, 0, 8), table(0, 1, 2, 4, 3, 5, 7, 6)]
    for deterministic in (True, False):
        moves = AgentPlayer(agent, deterministic=deterministic).choose(tables)
        assert all(one.action_masks()[move] for one, move in zip(tables, moves, strict=True))
        assert moves[-1] == 8, "the only one"


def test_an_agent_of_another_game():
    agent = PPO("MlpPolicy", "TicTacToe-v0", n_steps=8, batch_size=8, device="cpu")
    env = ConnectFour()
    env.reset()
    with pytest.raises(ValueError, match=r"agent: the agent's action_space is Discrete\(9\), the game's is Discrete\(7\)"):
        AgentPlayer(agent).choose([env])


def test_an_agent_whose_observations_are_converted():
    agent = PPO("MlpPolicy", "TicTacToe-v0", n_steps=8, batch_size=8, device="cpu", seed=0)
    player = AgentPlayer(agent, observation=lambda planes: planes[::-1])
    swapped, _ = agent.predict(table(4).observe()[None, ::-1], deterministic=True)
    assert player.choose([table(4)]) == swapped.tolist()


def test_a_wrong_number_of_actions():
    class Broken(FirstSquare):
        def predict(self, observation, **kwargs):
            return np.zeros(1, int), None

    with pytest.raises(ValueError, match=r"predict\(\) returned 1 actions for 2 observations"):
        AgentPlayer(Broken()).choose([table(), table()])


def test_checkpoints_play_and_leave_the_random_streams_alone(tmp_path):
    """Named after a fault: load() seeds the global streams with the saved agent's seed."""
    agent = DQN("MlpPolicy", "TicTacToe-v0", device="cpu", seed=5, buffer_size=100)
    agent.save(tmp_path / "agent")
    for seed in (random.seed, np.random.seed, th.manual_seed):
        seed(1)
    expected = random.random(), np.random.rand(), th.rand(()).item()
    for seed in (random.seed, np.random.seed, th.manual_seed):
        seed(1)
    player = AgentPlayer.load(DQN, tmp_path / "agent.zip", "old")
    assert (random.random(), np.random.rand(), th.rand(()).item()) == expected
    assert player.name == "old"
    assert player.choose([table(4)]) == AgentPlayer(agent).choose([table(4)])
