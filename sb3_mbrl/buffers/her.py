"""Imagined transitions beside hindsight experience replay (Andrychowicz et al. 2017): towards the goals that it relabels."""

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer

from sb3_mbrl.contracts import Imagined, Obs

REACHED, WANTED = "achieved_goal", "desired_goal"


def goal_starts(buffer: HerReplayBuffer, n: int, generator: th.Generator | None = None) -> Obs:
    """
    Observations to start from, with the goals that the buffer would train them with: a rollout towards goals that are never
    reached teaches nothing.

    :param buffer: has at least one finished episode
    :param n: how many
    :param generator: draws in the place of numpy's global stream, which stays as it is
    """
    state = np.random.get_state()
    np.random.seed(int(th.randint(2**31, (1,), generator=generator)))
    try:
        return buffer.sample(n).observations
    finally:
        np.random.set_state(state)


def towards_goals(imagined: Imagined, buffer: HerReplayBuffer) -> Imagined:
    """
    The goal of a rollout stays what it was at its start, and rewards are the environment's for it, as the buffer computes
    them. A world model has only seen the goals that there really were: of others it knows nothing.

    :param imagined: ``(T, B, ...)``, of observations with goals
    :param buffer: knows the environment; with ``copy_info_dict`` rewards need more than goals, and stay the model's
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
    told = th.as_tensor(np.asarray(reward, dtype=np.float32), device=imagined.reward.device).view_as(imagined.reward)
    return imagined._replace(reward=told)
