"""Model-based classes know the further policies by name."""

import copy

import numpy as np
import pytest
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl import MBPO, Dyna, model_based
from sb3_mbrl.policies.aliases import policy_names
from sb3_mbrl.policies.droq import SACDroQPolicy, TD3DroQPolicy
from sb3_mbrl.policies.simba import DQNSimbaPolicy, SACSimbaPolicy

MODEL = {
    "learning_starts": 30,
    "fit_freq": 30,
    "device": "cpu",
    "seed": 0,
    "policy_kwargs": {"net_arch": [16, 16]},
    "world_model_kwargs": {"members": 2, "elites": 2, "hidden": [16]},
    "fit_kwargs": {"max_batches": 20},
}


def test_an_algorithms_own_names_stay():
    names = policy_names(SAC.policy_aliases)
    assert names["MlpPolicy"] is SACPolicy
    assert {**names, "DroQPolicy": SACDroQPolicy, "SimbaPolicy": SACSimbaPolicy} == names
    assert policy_names({}) == {}
    assert "DroQPolicy" not in SAC.policy_aliases, "SB3's classes are left as they are"


@pytest.mark.parametrize(
    ("cls", "name", "policy", "env_id"),
    [
        (MBPO, "DroQPolicy", SACDroQPolicy, "Pendulum-v1"),
        (MBPO, "SimbaPolicy", SACSimbaPolicy, "Pendulum-v1"),
        (model_based(TD3), "DroQPolicy", TD3DroQPolicy, "Pendulum-v1"),
        (model_based(DDPG), "DroQPolicy", TD3DroQPolicy, "Pendulum-v1"),
        (Dyna, "SimbaPolicy", DQNSimbaPolicy, "CartPole-v1"),
    ],
)
def test_they_train_are_saved_and_loaded_by_name(cls, name, policy, env_id, tmp_path):
    agent = cls(name, env_id, **copy.deepcopy(MODEL)).learn(40)
    assert type(agent.policy) is policy
    agent.save(tmp_path / "agent", safe=True)
    loaded = cls.load(tmp_path / "agent", safe=True, device="cpu")
    assert type(loaded.policy) is policy
    obs = np.zeros((2, *agent.observation_space.shape), np.float32)
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
