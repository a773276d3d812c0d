"""Gymnasium wrappers: which of them leave an environment as it is."""

import gymnasium as gym
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

_NEUTRAL_STEPS = {
    wrapper.step
    for wrapper in (
        gym.Wrapper,  # a wrapper that does not override step()
        wrappers.HumanRendering,
        wrappers.OrderEnforcing,
        wrappers.PassiveEnvChecker,
        wrappers.RecordEpisodeStatistics,
        wrappers.RecordVideo,
        wrappers.RenderCollection,
        wrappers.TimeLimit,
        Monitor,
    )
}


def is_neutral(wrapper: gym.Env | type) -> bool:
    """
    Whether a wrapper, or a class of wrappers, leaves observations, actions, rewards and terminations as they are (a time limit
    only truncates).
    """
    return getattr(wrapper if isinstance(wrapper, type) else type(wrapper), "step", None) in _NEUTRAL_STEPS


def layers(env: gym.Env) -> list[gym.Env]:
    """
    The environment and the wrappers that change what it does, outermost first.

    :param env: an environment with any wrappers
    :return: the wrappers that are not neutral, then the unwrapped environment
    """
    found: list[gym.Env] = []
    while isinstance(env, gym.Wrapper):
        if not is_neutral(env):
            found.append(env)
        env = env.env
    return [*found, env]
