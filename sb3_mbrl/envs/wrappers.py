"""Wrappers of Gymnasium and SB3 that leave an environment as it is, and those that do not."""

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

    :param wrapper: a wrapper, or a class of wrappers
    """
    return getattr(wrapper if isinstance(wrapper, type) else type(wrapper), "step", None) in _NEUTRAL_STEPS


def effective_stack(env: gym.Env) -> list[gym.Env]:
    """
    List the wrappers that change what an environment does, outermost first, and then the environment itself.

    :param env: an environment with any wrappers
    :return: the wrappers that are not neutral, then the unwrapped environment
    """
    stack: list[gym.Env] = []
    while isinstance(env, gym.Wrapper):
        if not is_neutral(env):
            stack.append(env)
        env = env.env
    return [*stack, env]
