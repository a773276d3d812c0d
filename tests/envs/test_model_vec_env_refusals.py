"""Mistakes that ``ModelVecEnv`` refuses, and its messages."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.contracts import MissingCapability
from sb3_mbrl.envs.model_vec_env import ModelVecEnv
from sb3_mbrl.models.tabular.model import TabularModel
from sb3_mbrl.testing import CASES, LinearToy, NeighbourToy, RecurrentToy, TwoPlayerToy
from tests.envs.models import OBS, UNIT, ZERO, fitted, linear


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_envs": 0}, "n_envs=0: give a whole number from 1 on"),
        ({"horizon": 0}, "horizon=0: give a whole number from 1 on"),
        ({"observation": "latent"}, "choose 'decoded' or 'features'"),
    ],
)
def test_impossible_numbers_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ModelVecEnv(linear(), ZERO, **kwargs)


def test_an_unfitted_model_is_refused():
    with pytest.raises(ValueError, match=r"NeighbourToy has not been fitted.*fit_world_model"):
        ModelVecEnv(NeighbourToy(OBS, UNIT, device="cpu"), ZERO)


def test_a_model_without_decode_is_refused_with_the_fix():
    model, data = fitted(RecurrentToy, CASES[0])
    with pytest.raises(MissingCapability, match="Use observation='features'"):
        ModelVecEnv(model, data)


def test_a_two_player_model_is_refused():
    env = ModelVecEnv(TwoPlayerToy(spaces.Discrete(10), spaces.Discrete(3), device="cpu"), np.array([[9]]))
    env.reset()
    with pytest.raises(MissingCapability, match="negative discount"):
        env.step(np.array([0]))


def test_a_discount_that_is_not_negative_is_reported():
    class Discounting(LinearToy):
        def step(self, state, action, *, deterministic=False, generator=None):
            return super().step(state, action)._replace(discount=th.full((len(state),), 0.75))

    env = ModelVecEnv(Discounting(OBS, UNIT, device="cpu"), ZERO)
    env.reset()
    assert env.step(np.zeros((1, 2), dtype=np.float32))[3][0]["discount"] == 0.75


def test_a_buffer_of_other_spaces_is_refused():
    buffer = ReplayBuffer(8, spaces.Box(-1, 1, (2,)), UNIT, device="cpu")
    with pytest.raises(ValueError, match="the replay buffer is for"):
        ModelVecEnv(linear(), buffer)


def test_bad_calls_are_refused():
    env = ModelVecEnv(linear(), ZERO, n_envs=2)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((2, 2), dtype=np.float32))
    env.reset()
    with pytest.raises(ValueError, match=r"expected actions of shape \(2, 2\), got \(1, 2\)"):
        env.step(np.zeros((1, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="an action is not finite"):
        env.step(np.full((2, 2), np.nan, dtype=np.float32))
    with pytest.raises(TypeError, match="not int"):
        ModelVecEnv(linear(), 3)
    env.set_options({"easy": True})
    with pytest.raises(ValueError, match="no reset options"):
        env.reset()


# ---- tables, which compiled code reads without looking at bounds


@pytest.fixture
def cells():
    model = TabularModel(gym.spaces.Discrete(6), gym.spaces.Discrete(2), device="cpu")
    model.record(0, 1, 1.0, 2, False)
    return model


@pytest.mark.parametrize("start", [[6], [-3], [10**7]])
def test_starts_outside_a_discrete_space(cells, start):
    with pytest.raises(ValueError, match=rf"Start observations: \[{start[0]}\] is not in Discrete\(6\)"):
        ModelVecEnv(cells, np.array([start]))
    with pytest.raises(ValueError, match=rf"The observation {start[0]} is not in Discrete\(6\)"):
        cells.initial(th.tensor([start]))


@pytest.mark.parametrize("action", [2, -1, 100_000])
def test_actions_outside_a_discrete_space(cells, action):
    env = ModelVecEnv(cells, np.array([[0]]), n_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=rf"the action {action} is not in Discrete\(2\)"):
        env.step(np.array([0, action]))
    with pytest.raises(ValueError, match=rf"The action {action} is not in Discrete\(2\)"):
        cells.step(th.tensor([[0]]), th.tensor([[action]]))


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"give a fitted world model, such as agent\.world_model"):
        ModelVecEnv("ensemble", np.array([[0]]))


@pytest.mark.parametrize("wrong", [{"horizon": float("nan")}, {"horizon": 2.5}, {"horizon": True}, {"n_envs": "2"}])
def test_numbers_of_another_kind(cells, wrong):
    with pytest.raises(ValueError, match="give a whole number from 1 on"):
        ModelVecEnv(cells, np.array([[0]]), **wrong)
