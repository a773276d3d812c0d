"""Open-loop predictions against the real environment."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC

from sb3_mbrl import MBPO
from sb3_mbrl.diagnostics.dream import dream


def test_a_perfect_model_dreams_what_happens(exact):
    dreamt = dream(exact, gym.make("Pendulum-v1"), context=3, horizon=10)
    assert dreamt.real["obs"].shape == (13, 3)
    np.testing.assert_allclose(dreamt.imagined["obs"], dreamt.real["obs"], atol=2e-3)
    np.testing.assert_allclose(dreamt.imagined_reward[2:], dreamt.real_reward[2:], atol=2e-3)
    assert np.isnan(dreamt.imagined_reward[:2]).all()


def test_mistakes(exact):
    with pytest.raises(ValueError, match="context=0: give at least 1"):
        dream(exact, gym.make("Pendulum-v1"), context=0)
    with pytest.raises(ValueError, match="the episode was over after 200 steps, and the model is to see 201"):
        dream(exact, gym.make("Pendulum-v1"), context=201)
    with pytest.raises(ValueError, match="SAC has no world model"):
        dream(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="has not been fitted yet"):
        dream(MBPO("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"), gym.make("Pendulum-v1"))
