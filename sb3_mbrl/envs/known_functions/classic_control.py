"""Known rewards and terminations of Gymnasium's classic control environments and of our cart-poles.

Limits are read from the environment.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch as th

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs import cartpole
from sb3_mbrl.envs.known_functions.common import Never, TerminationReward, VectorFunction


@dataclass(frozen=True)
class CartPoleTermination(VectorFunction, saved_as="CartPoleTermination"):
    """
    The termination of cart-poles, when the cart has left the track or the pole has fallen: ``|x| > x_limit`` or
    ``|theta| > theta_limit``.

    :param x_limit: the largest distance from the middle of the track, in metres
    :param theta_limit: the largest angle from upright, in radians
    """

    x_limit: float
    theta_limit: float

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return (next_obs[..., 0].abs() > self.x_limit) | (next_obs[..., 2].abs() > self.theta_limit)


@dataclass(frozen=True)
class PendulumReward(VectorFunction, saved_as="PendulumReward"):
    """
    The reward ``-(theta^2 + 0.1 theta_dot^2 + 0.001 u^2)`` with the angle before the step, in ``[-pi, pi)``.

    :param max_torque: the limit that the torque ``u`` is clipped to
    """

    max_torque: float

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        # Observations are (cos(theta), sin(theta), theta_dot).
        theta = th.atan2(obs[..., 1], obs[..., 0])
        torque = action[..., 0].clamp(-self.max_torque, self.max_torque)
        return -(theta.square() + 0.1 * obs[..., 2].square() + 0.001 * torque.square())


@dataclass(frozen=True)
class MountainCarTermination(VectorFunction, saved_as="MountainCarTermination"):
    """
    The termination of the mountain cars, when the car is at the flag and fast enough.

    :param goal_position: the position of the flag
    :param goal_velocity: the least velocity at the flag
    """

    goal_position: float
    goal_velocity: float

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return (next_obs[..., 0] >= self.goal_position) & (next_obs[..., 1] >= self.goal_velocity)


@dataclass(frozen=True)
class ContinuousMountainCarReward(VectorFunction, saved_as="ContinuousMountainCarReward"):
    """
    The reward ``100 [flag reached] - 0.1 a^2`` with the action before it is clipped.

    :param termination: the termination function, which tells when the flag is reached
    """

    termination: MountainCarTermination

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return 100.0 * self.termination(obs, action, next_obs).to(next_obs.dtype) - 0.1 * action[..., 0].square()


@dataclass(frozen=True)
class AcrobotTermination(VectorFunction, saved_as="AcrobotTermination"):
    """The termination of Acrobot, when the tip is one link above the base: ``-cos(theta1) - cos(theta1 + theta2) > 1``."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        cos1, sin1, cos2, sin2 = next_obs[..., :4].unbind(-1)
        # cos(theta1 + theta2) = cos(theta1) cos(theta2) - sin(theta1) sin(theta2)
        return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0


@dataclass(frozen=True)
class SwingUpReward(VectorFunction, saved_as="SwingUpReward"):
    """
    The reward ``exp(-d^2 / l^2) - 0.01 a^2`` after the step, with the distance ``d`` of the pole's tip from its goal, which is
    at the pole's length ``l`` above the middle of the track.

    :param length: the length of the pole, in metres
    """

    length: float

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        x, cos, sin = next_obs[..., 0], next_obs[..., 2], next_obs[..., 3]
        # The tip is at (x + l sin(theta), l cos(theta)), its goal at (0, l).
        squared_distance = (x + self.length * sin).square() + (self.length * (cos - 1)).square()
        return (-squared_distance / self.length**2).exp() - 0.01 * action[..., 0].clamp(-1, 1).square()


def cart_pole_balance(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``CartPoleBalance-v0``."""
    termination = CartPoleTermination(cartpole.X_LIMIT, cartpole.THETA_LIMIT)
    return EnvFunctions(TerminationReward(1.0, 1.0, termination), termination)


def cart_pole_swing_up(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``CartPoleSwingUp-v0``."""
    return EnvFunctions(SwingUpReward(2 * cartpole.HALF_LENGTH), Never())


def cart_pole(env: gym.Env) -> EnvFunctions:
    """
    Make the functions of ``CartPole-v0`` and ``CartPole-v1``. The reward is right up to the first termination: the environment
    gives other rewards if it is stepped on after that.
    """
    raw: Any = env.unwrapped
    termination = CartPoleTermination(float(raw.x_threshold), float(raw.theta_threshold_radians))
    running, terminal = (0.0, -1.0) if raw._sutton_barto_reward else (1.0, 1.0)
    return EnvFunctions(TerminationReward(running, terminal, termination), termination)


def pendulum(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Pendulum-v1``."""
    raw: Any = env.unwrapped
    return EnvFunctions(PendulumReward(float(raw.max_torque)), Never())


def mountain_car(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``MountainCar-v0``."""
    termination = _mountain_car_termination(env)
    return EnvFunctions(TerminationReward(-1.0, -1.0, termination), termination)


def continuous_mountain_car(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``MountainCarContinuous-v0``."""
    termination = _mountain_car_termination(env)
    return EnvFunctions(ContinuousMountainCarReward(termination), termination)


def acrobot(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Acrobot-v1``."""
    return EnvFunctions(TerminationReward(-1.0, 0.0, AcrobotTermination()), AcrobotTermination())


def _mountain_car_termination(env: gym.Env) -> MountainCarTermination:
    raw: Any = env.unwrapped
    return MountainCarTermination(float(raw.goal_position), float(raw.goal_velocity))
