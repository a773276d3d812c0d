"""Imagination with hindsight experience replay (Andrychowicz et al. 2017): rollouts towards its relabelled goals."""

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer

from sb3_mbrl.contracts import Imagined, Obs

REACHED, WANTED = "achieved_goal", "desired_goal"


def goal_starts(buffer: HerReplayBuffer, n: int, generator: th.Generator | None = None) -> Obs:
    """
    Draw observations to start from, with the relabelled goals with which the buffer would train them. (Rollouts towards goals
    that are never reached would teach nothing.)

    :param buffer: a buffer with at least one finished episode
    :param n: the number of observations
    :param generator: the source of randomness, instead of numpy's global stream, which does not move
    """
    # The buffer draws from numpy's global stream: seed it from the generator, and restore it afterwards.
    state = np.random.get_state()
    np.random.seed(int(th.randint(2**31, (1,), generator=generator)))
    try:
        return buffer.sample(n).observations
    finally:
        np.random.set_state(state)


def towards_goals(imagined: Imagined, buffer: HerReplayBuffer) -> Imagined:
    """
    Keep the goal of the start in all steps of a rollout, and compute the rewards for it with the environment.

    The world model's own predictions of goals and rewards are replaced, since it has learned from the real goals only.

    :param imagined: rollouts of observations with goals, ``(T, B, ...)``
    :param buffer: the buffer, which has the environment; with ``copy_info_dict`` rewards need more than goals, and the
        model's rewards are kept
    """
    obs, next_obs = imagined.obs, imagined.next_obs
    assert isinstance(obs, dict)
    assert isinstance(next_obs, dict)
    goal = obs[WANTED][:1].expand_as(obs[WANTED])
    imagined = imagined._replace(obs={**obs, WANTED: goal}, next_obs={**next_obs, WANTED: goal})
    if buffer.copy_info_dict or buffer.env is None:
        return imagined
    rows = imagined.reward.numel()
    reached, wanted = (
        leaf.flatten(0, 1).cpu().numpy().astype(buffer.observations[key].dtype)
        for key, leaf in ((REACHED, next_obs[REACHED]), (WANTED, goal))
    )
    (reward,) = buffer.env.env_method("compute_reward", reached, wanted, np.array([{}] * rows), indices=[0])
    reward_of_goal = th.as_tensor(np.asarray(reward, dtype=np.float32), device=imagined.reward.device).view_as(imagined.reward)
    return imagined._replace(reward=reward_of_goal)
