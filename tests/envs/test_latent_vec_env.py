"""The real environment through a world model."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import LatentVecEnv, ModelVecEnv
from tests.helpers.dreamers import small


@pytest.fixture(scope="module")
def trained():
    return small().learn(80)


def test_features_are_those_of_filtering_every_episode(trained):
    """Step by step, with ends of episodes in between, against the model itself."""
    model, real, latent = trained.world_model, make_vec_env("CartPole-v1", 2, seed=3), make_vec_env("CartPole-v1", 2, seed=3)
    env = LatentVecEnv(latent, model)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (16 + 3 * 4,), np.float32)
    obs, features, rng = real.reset(), env.reset(), np.random.default_rng(0)
    state, ends = model.initial(th.as_tensor(obs)), 0
    with th.no_grad():
        for _ in range(60):
            np.testing.assert_allclose(features, model.features(state), atol=1e-6)
            action = rng.integers(2, size=2)
            before, (obs, _, dones, infos) = state, real.step(action)
            features, _, also, shown = env.step(action)
            assert (dones == also).all()
            encoded = th.as_tensor(action)[:, None]
            for i in np.flatnonzero(dones):
                ends += 1
                last = th.as_tensor(infos[i]["terminal_observation"])[None]
                one = {key: value[i : i + 1] for key, value in before.items()}
                expected = model.features(model.observe(one, encoded[i : i + 1], last, th.tensor([False])))
                np.testing.assert_allclose(shown[i]["terminal_observation"], expected[0], atol=1e-6)
            state = model.observe(before, encoded, th.as_tensor(obs), th.as_tensor(dones))
    assert ends >= 2


def test_trained_in_the_dream_and_deployed(trained):
    dreamt = ModelVecEnv(trained.world_model, trained.replay_buffer, n_envs=2, horizon=8, observation="features", seed=0)
    agent = PPO("MlpPolicy", dreamt, n_steps=16, batch_size=16, device="cpu").learn(64)
    real = LatentVecEnv(make_vec_env("CartPole-v1", 2), trained.world_model)
    assert evaluate_policy(agent, real, n_eval_episodes=2)[0] > 1


def test_an_environment_of_other_spaces(trained):
    with pytest.raises(ValueError, match="the environment's observation_space is Box"):
        LatentVecEnv(make_vec_env("Pendulum-v1"), trained.world_model)
    with pytest.raises(ValueError, match="RSSM has not been fitted"):
        LatentVecEnv(make_vec_env("CartPole-v1"), small().world_model)
