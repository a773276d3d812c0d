"""The helpers that known functions share."""

import pytest
import torch as th
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions.common import Never
from tests.envs.functions import functions_of, make


def test_nothing_is_known_of_an_environment_that_a_wrapper_changes():
    env = make("Pendulum-v1")
    neutral = wrappers.RecordEpisodeStatistics(Monitor(wrappers.TimeLimit(env, 7)))
    assert functions_of("Pendulum-v1", neutral).reward_fn is not None
    for changed in (
        wrappers.RescaleAction(env, -1.0, 1.0),
        wrappers.TransformReward(env, lambda reward: reward / 10),
        Monitor(wrappers.TransformObservation(env, lambda obs: obs[::-1], env.observation_space)),
        wrappers.StickyAction(env, 0.25),
    ):
        assert functions_of("Pendulum-v1", changed) == EnvFunctions()


def test_dictionary_observations_are_refused():
    obs = {"observation": th.zeros(1, 3)}
    with pytest.raises(TypeError, match="not a dictionary"):
        Never()(obs, th.zeros(1, 1), obs)
