"""Catch: rules and optimum."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

import sb3_mbrl  # noqa: F401  (registers them)
from sb3_mbrl.envs.catch import CatchEnv
from sb3_mbrl.envs.memory_cue import MemoryCueEnv


@pytest.mark.parametrize("name", ["Catch-v0", "MemoryCue-v0"])
def test_they_are_environments(name):
    check_env(gym.make(name).unwrapped)


def test_the_ball_is_caught_by_following_it():
    env = CatchEnv()
    for seed in range(10):
        board, _ = env.reset(seed=seed)
        assert board.sum() == 2
        assert board[9, 2] == 1
        ball, paddle, steps, over, total = int(board[0].argmax()), 2, 0, False, 0.0
        while not over:
            action = 1 + np.sign(ball - paddle)
            paddle += action - 1
            board, reward, over, truncated, _ = env.step(action)
            assert not truncated
            assert board[9, paddle] == 1
            total, steps = total + reward, steps + 1
        assert (total, steps) == (1.0, 9)


def test_the_board_as_an_image():
    numbers, image = CatchEnv(), CatchEnv(pixels=2)
    check_env(image)
    numbers.reset(seed=3)
    image.reset(seed=3)
    for action in (0, 0, 2):
        board, picture = numbers.step(action)[0], image.step(action)[0]
        assert picture.shape == (20, 10, 1)
        for row in range(20):
            assert picture[row, :, 0].tolist() == [255 * board[row // 2, column // 2] for column in range(10)]


def test_a_paddle_that_stays_catches_one_ball_of_five():
    env, returns = CatchEnv(), []
    for seed in range(300):
        env.reset(seed=seed)
        returns.append(sum(env.step(1)[1] for _ in range(9)))
    assert np.mean(returns) == pytest.approx(-0.6, abs=0.1)
    for _ in range(4):
        board = env.reset(seed=0)[0] if _ == 0 else env.step(0)[0]
    assert board[9, 0] == 1, "the wall holds it"


def test_impossible_sizes():
    with pytest.raises(ValueError, match="at least 2 rows"):
        CatchEnv(rows=1)
    with pytest.raises(ValueError, match="pixels=-1"):
        CatchEnv(pixels=-1)
    with pytest.raises(ValueError, match="give at least 1"):
        MemoryCueEnv(0)
