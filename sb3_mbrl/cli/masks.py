"""Agents that are told which actions are legal, in evaluations by SB3's ``evaluate_policy``."""

import inspect
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.algorithms.muzero import MuZero


class Masked:
    """
    An agent that is told the legal actions of an environment; everything but ``predict`` is the agent's.

    :param agent: an agent whose ``predict`` takes ``action_masks``
    :param env: the environment
    """

    def __init__(self, agent: Any, env: VecEnv) -> None:
        self.agent, self.env = agent, env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the agent, among the actions that are legal now."""
        return self.agent.predict(*args, action_masks=np.stack(self.env.env_method("action_masks")), **kwargs)


def with_masks(agent: BaseAlgorithm, env: VecEnv) -> Any:
    """Let an agent that takes masks (MuZero, sb3-contrib's MaskablePPO) see those of an environment that has any."""
    takes = isinstance(agent, MuZero) or "action_masks" in inspect.signature(agent.predict).parameters
    return Masked(agent, env) if takes and env.has_attr("action_masks") else agent
