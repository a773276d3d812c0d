"""A game against a given opponent: seats, rewards of both, training."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import sb3_mbrl  # noqa: F401  (registers the boards)
from sb3_mbrl.envs.boards import (
    TIC_TAC_TOE,
    AgentPlayer,
    Opponent,
    PerfectPlayer,
    Player,
    RandomPlayer,
    TicTacToe,
)
from tests.envs.boards.toy_agents import Exact


class Script(Player):
    """A player with its moves given."""

    def __init__(self, *moves):
        super().__init__("script")
        self.moves = list(moves)

    def choose(self, tables):
        return [self.moves.pop(0) for _ in tables]


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_it_is_an_environment():
    check_env(Opponent(TicTacToe(), RandomPlayer(), seat=0), skip_render_check=True)


def test_the_opponent_replies():
    env = Opponent(gym.make("TicTacToe-v0"), Script(3, 4), seat=0)
    obs, info = env.reset()
    assert (obs.sum(), info) == (0, {"player": 0, "seat": 0})
    assert env.turns == env.get_wrapper_attr("turns") == 1
    obs, reward, terminated, _, info = env.step(0)
    assert (reward, terminated, info) == (0.0, False, {"player": 0, "seat": 0})
    assert np.argwhere(obs).tolist() == [[0, 0, 0], [1, 1, 0]]
    assert np.flatnonzero(env.action_masks()).tolist() == [1, 2, 4, 5, 6, 7, 8]
    env.step(1)
    _, reward, terminated, _, info = env.step(2)
    assert (reward, terminated, info["winner"]) == (1.0, True, 0)


def test_a_win_of_the_opponent_is_a_loss():
    env = Opponent(TicTacToe(), Script(0, 1, 2), seat=1)
    obs, info = env.reset()
    assert info["seat"] == 1
    assert np.argwhere(obs).tolist() == [[1, 0, 0]], "the opponent has begun"
    env.step(3)
    _, reward, terminated, _, info = env.step(4)
    assert (reward, terminated, info["winner"]) == (-1.0, True, 0)


def test_an_illegal_move_loses():
    env = Opponent(TicTacToe(), Script(3), seat=0)
    env.reset()
    env.step(0)
    _, reward, terminated, _, info = env.step(3)
    assert (reward, terminated, info["illegal"]) == (-1.0, True, True)


def test_seats_and_opponents_are_random_and_repeatable():
    def episodes(seed):
        env = Opponent(TicTacToe(), [RandomPlayer(name="a"), PerfectPlayer()])
        seats = [env.reset(seed=seed if n == 0 else None)[1]["seat"] for n in range(200)]
        return seats, env._playing.name

    seats, _ = episodes(0)
    assert 70 < sum(seats) < 130
    assert episodes(0) == episodes(0)
    assert episodes(1)[0] != seats


def test_a_perfect_opponent_does_not_lose():
    env = Opponent(TicTacToe(), PerfectPlayer(seed=0))
    rng, returns = np.random.default_rng(0), set()
    for seed in range(30):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, over, _, _ = env.step(rng.choice(np.flatnonzero(env.action_masks())))
        returns.add(reward)
    assert returns <= {-1.0, 0.0}


def test_an_agent_as_the_opponent():
    env = Opponent(TicTacToe(), AgentPlayer(Exact(TIC_TAC_TOE)), seat=0)
    env.reset()
    obs, *_ = env.step(0)
    assert np.argwhere(obs[1]).tolist() == [[1, 1]]


def test_algorithms_of_sb3_train_against_it():
    env = make_vec_env(lambda: Opponent(gym.make("TicTacToe-v0"), RandomPlayer()), n_envs=2, seed=0)
    agent = PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", seed=0)
    agent.learn(128)
    assert agent.num_timesteps == 128
    assert {round(info["r"]) for info in agent.ep_info_buffer} <= {-1, 0, 1}


def test_masks_reach_maskable_ppo():
    """With masks, no game ends by an illegal move."""
    contrib = pytest.importorskip("sb3_contrib")
    env = make_vec_env(lambda: Opponent(gym.make("TicTacToe-v0"), RandomPlayer()), n_envs=2, seed=0)
    agent = contrib.MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", seed=0)
    illegal = []
    agent.learn(128, callback=lambda local, _: illegal.extend("illegal" in info for info in local["infos"]) is None)
    assert len(illegal) == 128
    assert not any(illegal)


def test_what_cannot_have_an_opponent():
    with pytest.raises(TypeError, match="needs a game of two players"):
        Opponent(gym.make("CartPole-v1"), RandomPlayer())
    with pytest.raises(ValueError, match="has an opponent already"):
        Opponent(Opponent(TicTacToe(), RandomPlayer()), RandomPlayer())
    with pytest.raises(TypeError, match="give a Player, or several"):
        Opponent(TicTacToe(), "random")
    with pytest.raises(TypeError, match="give a Player, or several"):
        Opponent(TicTacToe(), [])
    with pytest.raises(ValueError, match="seat=2"):
        Opponent(TicTacToe(), RandomPlayer(), seat=2)
