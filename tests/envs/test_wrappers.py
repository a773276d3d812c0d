"""Which wrappers leave an environment as it is."""

import gymnasium as gym
import pytest
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl.envs.wrappers import effective_stack, is_neutral


class Doubled(gym.Wrapper):
    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, 2 * reward, *rest


def test_the_stack_leaves_neutral_wrappers_out_and_ends_with_the_environment():
    env = Doubled(Monitor(wrappers.FlattenObservation(gym.make("Pendulum-v1"))))  # made with a TimeLimit and two more
    stack = effective_stack(env)
    assert [type(layer) for layer in stack] == [Doubled, wrappers.FlattenObservation, type(env.unwrapped)]
    assert stack[0] is env
    assert stack[-1] is env.unwrapped
    assert effective_stack(env.unwrapped) == [env.unwrapped]


@pytest.mark.parametrize(
    ("wrapper", "neutral"), [(Monitor, True), (wrappers.TimeLimit, True), (Doubled, False), (wrappers.ClipAction, False)]
)
def test_classes_are_judged_like_their_instances(wrapper, neutral):
    assert is_neutral(wrapper) is neutral
