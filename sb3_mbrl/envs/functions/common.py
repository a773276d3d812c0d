"""What all known functions share: their shape, and whether a wrapped environment still is the one they describe."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import gymnasium as gym
import torch as th
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl.contracts import Obs

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


@dataclass(frozen=True)
class VectorFunction(ABC):
    """
    A known reward or termination of an environment with plain vector observations. Subclasses have plain fields, so that they
    pickle.

    Called with raw observations ``(B, D)``, actions in the environment's units ``(B, A)`` (discrete ones as integers ``(B,
    1)``) and next observations ``(B, D)``; returns ``(B,)``. Rewards are differentiable.
    """

    def __call__(self, obs: Obs, action: th.Tensor, next_obs: Obs) -> th.Tensor:
        if isinstance(obs, dict) or isinstance(next_obs, dict):
            raise TypeError(
                f"{type(self).__name__} reads plain observations (B, D), not a dictionary; "
                "give a reward_fn or termination_fn of your own for this environment"
            )
        return self.compute(obs, action, next_obs)

    @abstractmethod
    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """``(B,)``, from tensors."""


@dataclass(frozen=True)
class Never(VectorFunction):
    """The environment does not terminate."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return th.zeros(next_obs.shape[:-1], dtype=th.bool, device=next_obs.device)


@dataclass(frozen=True)
class TerminationReward(VectorFunction):
    """
    A reward that only depends on whether the step terminates.

    :param running: the reward of a step that does not
    :param terminal: the reward of a step that does
    :param termination: the termination function
    """

    running: float
    terminal: float
    termination: VectorFunction

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        terminated = self.termination(obs, action, next_obs)
        return th.full_like(next_obs[..., 0], self.running).masked_fill(terminated, self.terminal)
