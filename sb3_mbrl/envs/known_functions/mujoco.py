"""Known rewards and terminations of Gymnasium's MuJoCo environments, -v4 and -v5. Limits and weights are read from the
environment.

A reward is given only where the observation decides it. Forward velocities are differences of positions that are hidden by
default; with ``exclude_current_positions_from_observation=False`` they are in the observation and the reward is given. Ant
and Humanoid have none either way: their velocity comes from body positions of the last inner simulation step, and contact
forces are clipped or hidden. Nothing here imports MuJoCo.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions.common import Never, TerminationReward, VectorFunction

Range = tuple[float, float]
Columns = tuple[int, int]


@dataclass(frozen=True)
class Unhealthy(VectorFunction, saved_as="Unhealthy"):
    """
    A column is not strictly within its limits; NaN never is.

    In Hopper the observation clips velocities to [-10, 10], so that limits beyond this (100 by default) cannot be seen to be
    broken by them.

    :param limits: ``(column, low, high)`` of the next observation
    :param rest: ``(first column, low, high)``: limits of every further column
    """

    limits: tuple[tuple[int, float, float], ...]
    rest: tuple[int, float, float] | None = None

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        healthy = th.ones(next_obs.shape[:-1], dtype=th.bool, device=next_obs.device)
        for column, low, high in self.limits:
            healthy &= (low < next_obs[..., column]) & (next_obs[..., column] < high)
        if self.rest is not None:
            first, low, high = self.rest
            healthy &= ((low < next_obs[..., first:]) & (next_obs[..., first:] < high)).all(-1)
        return ~healthy


@dataclass(frozen=True)
class AntUnhealthy(VectorFunction, saved_as="AntUnhealthy"):
    """
    The torso is too low or too high, or a position or velocity is not finite. The limits themselves are healthy.

    :param height: the column of the torso's height
    :param n_state: how many columns are positions and velocities (contact forces follow)
    :param z_range: metres
    """

    height: int
    n_state: int
    z_range: Range

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        z = next_obs[..., self.height]
        healthy = (self.z_range[0] <= z) & (z <= self.z_range[1])
        return ~(healthy & next_obs[..., : self.n_state].isfinite().all(-1))


@dataclass(frozen=True)
class InvertedPendulumTermination(VectorFunction, saved_as="InvertedPendulumTermination"):
    """The pole's angle is beyond 0.2 rad, or the observation is not finite."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return ~next_obs.isfinite().all(-1) | (next_obs[..., 1].abs() > 0.2)


@dataclass(frozen=True)
class InvertedDoublePendulumTermination(VectorFunction, saved_as="InvertedDoublePendulumTermination"):
    """
    The tip of the second pole (0.6 m each) is no higher than 1 m.

    The environment looks at the tip as of the last stage of its integrator, which is up to 5e-5 m away from where the
    observation puts it.
    """

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        sin1, sin2, cos1, cos2 = next_obs[..., 1:5].unbind(-1)
        return 0.6 * cos1 + 0.6 * (cos1 * cos2 - sin1 * sin2) <= 1.0


@dataclass(frozen=True)
class ForwardReward(VectorFunction, saved_as="ForwardReward"):
    """
    Forward velocity, a bonus for being healthy, minus a control cost; for observations that begin with the position.

    The velocity is a difference of positions: in float32 its error is about ``1e-7 |x| / dt``.

    :param dt: seconds per step
    :param forward_weight: weight of the velocity
    :param control_weight: weight of the sum of the squared actions
    :param healthy_reward: the bonus
    :param unhealthy: when the bonus is not given (``None``: it always is)
    """

    dt: float
    forward_weight: float
    control_weight: float
    healthy_reward: float = 0.0
    unhealthy: VectorFunction | None = None

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        reward = self.forward_weight * (next_obs[..., 0] - obs[..., 0]) / self.dt - self.control_weight * action.square().sum(
            -1
        )
        if self.unhealthy is None:
            return reward + self.healthy_reward
        return reward + self.healthy_reward * (~self.unhealthy(obs, action, next_obs)).to(reward.dtype)


@dataclass(frozen=True)
class DistanceReward(VectorFunction, saved_as="DistanceReward"):
    """
    Minus weighted distances and a control cost (Reacher, Pusher).

    :param terms: ``(weight, columns of a point, columns of another point or None for the origin)``
    :param control_weight: weight of the sum of the squared actions
    :param before: distances before the step (-v4) instead of after it (-v5)
    """

    terms: tuple[tuple[float, Columns, Columns | None], ...]
    control_weight: float
    before: bool

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        source = obs if self.before else next_obs
        reward = -self.control_weight * action.square().sum(-1)
        for weight, point, other in self.terms:
            offset = source[..., point[0] : point[1]]
            if other is not None:
                offset = offset - source[..., other[0] : other[1]]
            reward = reward - weight * offset.norm(dim=-1)
        return reward


@dataclass(frozen=True)
class StandupReward(VectorFunction, saved_as="StandupReward"):
    """
    Height over the time of one inner simulation step, minus control and impact costs, plus 1 (HumanoidStandup).

    :param height: the column of the torso's height
    :param n_forces: how many columns at the end are contact forces
    :param timestep: seconds
    :param control_weight: weight of the sum of the squared actions
    :param impact_weight: weight of the sum of the squared forces
    :param impact_range: the impact cost is clipped to it
    """

    height: int
    n_forces: int
    timestep: float
    control_weight: float
    impact_weight: float
    impact_range: Range

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        impact_cost = (self.impact_weight * next_obs[..., -self.n_forces :].square().sum(-1)).clamp(*self.impact_range)
        control_cost = self.control_weight * action.square().sum(-1)
        return next_obs[..., self.height] / self.timestep - control_cost - impact_cost + 1.0


def hopper(env: gym.Env) -> EnvFunctions:
    """``Hopper``."""
    raw, hidden = _raw(env), _hidden_positions(env, 1)
    limits = ((1 - hidden, *_range(raw._healthy_z_range)), (2 - hidden, *_range(raw._healthy_angle_range)))
    unhealthy = Unhealthy(limits, (2 - hidden, *_range(raw._healthy_state_range)))
    return EnvFunctions(_forward_reward(raw, hidden, unhealthy), _termination(raw, unhealthy))


def walker2d(env: gym.Env) -> EnvFunctions:
    """``Walker2d``."""
    raw, hidden = _raw(env), _hidden_positions(env, 1)
    unhealthy = Unhealthy(((1 - hidden, *_range(raw._healthy_z_range)), (2 - hidden, *_range(raw._healthy_angle_range))))
    return EnvFunctions(_forward_reward(raw, hidden, unhealthy), _termination(raw, unhealthy))


def half_cheetah(env: gym.Env) -> EnvFunctions:
    """``HalfCheetah``."""
    return EnvFunctions(_forward_reward(_raw(env), _hidden_positions(env, 1)), Never())


def swimmer(env: gym.Env) -> EnvFunctions:
    """``Swimmer``."""
    return EnvFunctions(_forward_reward(_raw(env), _hidden_positions(env, 2)), Never())


def ant(env: gym.Env) -> EnvFunctions:
    """``Ant``."""
    raw, hidden = _raw(env), _hidden_positions(env, 2)
    n_state = int(raw.model.nq + raw.model.nv) - hidden
    return EnvFunctions(None, _termination(raw, AntUnhealthy(2 - hidden, n_state, _range(raw._healthy_z_range))))


def humanoid(env: gym.Env) -> EnvFunctions:
    """``Humanoid``."""
    raw, hidden = _raw(env), _hidden_positions(env, 2)
    return EnvFunctions(None, _termination(raw, Unhealthy(((2 - hidden, *_range(raw._healthy_z_range)),))))


def humanoid_standup(env: gym.Env) -> EnvFunctions:
    """``HumanoidStandup``; no reward where the contact forces are not in the observation."""
    raw = _raw(env)
    if _is_v4(raw):
        reward = StandupReward(0, 6 * int(raw.model.nbody), float(raw.model.opt.timestep), 0.1, 0.5e-6, (-float("inf"), 10.0))
        return EnvFunctions(reward, Never())
    if not raw._include_cfrc_ext_in_observation:
        return EnvFunctions(None, Never())
    reward = StandupReward(
        height=2 - _hidden_positions(env, 2),
        n_forces=6 * (int(raw.model.nbody) - 1),  # without those on the world body, which are 0
        timestep=float(raw.model.opt.timestep),
        control_weight=float(raw._ctrl_cost_weight),
        impact_weight=float(raw._impact_cost_weight),
        impact_range=_range(raw._impact_cost_range),
    )
    return EnvFunctions(reward, Never())


def inverted_pendulum(env: gym.Env) -> EnvFunctions:
    """``InvertedPendulum``. The last step is rewarded in -v4 but not in -v5."""
    termination = InvertedPendulumTermination()
    return EnvFunctions(TerminationReward(1.0, 1.0 if _is_v4(_raw(env)) else 0.0, termination), termination)


def inverted_double_pendulum(env: gym.Env) -> EnvFunctions:
    """``InvertedDoublePendulum``, with the poles of its own model file."""
    stock = _has_model_file(env, "inverted_double_pendulum.xml")
    return EnvFunctions(None, InvertedDoublePendulumTermination() if stock else None)


def reacher(env: gym.Env) -> EnvFunctions:
    """``Reacher``; the observation of -v5 has no height difference, which is 0 in its own model file."""
    raw = _raw(env)
    if _is_v4(raw):
        return EnvFunctions(DistanceReward(((1.0, (8, 11), None),), 1.0, before=True), Never())
    if not _has_model_file(env, "reacher.xml"):
        return EnvFunctions(None, Never())
    terms = ((float(raw._reward_dist_weight), (8, 10), None),)
    return EnvFunctions(DistanceReward(terms, float(raw._reward_control_weight), before=False), Never())


def pusher(env: gym.Env) -> EnvFunctions:
    """``Pusher``: arm to object and object to goal."""
    raw = _raw(env)
    v4 = _is_v4(raw)
    near, far = (0.5, 1.0) if v4 else (float(raw._reward_near_weight), float(raw._reward_dist_weight))
    terms = ((near, (17, 20), (14, 17)), (far, (17, 20), (20, 23)))
    return EnvFunctions(DistanceReward(terms, 0.1 if v4 else float(raw._reward_control_weight), before=v4), Never())


def _raw(env: gym.Env) -> Any:
    return env.unwrapped


def _is_v4(raw: gym.Env) -> bool:
    return any(base.__module__.endswith("_v4") for base in type(raw).__mro__)


def _has_model_file(env: gym.Env, name: str) -> bool:
    return Path(_raw(env).fullpath).name == name


def _range(limits: Any) -> Range:
    low, high = limits
    return float(low), float(high)


def _hidden_positions(env: gym.Env, n: int) -> int:
    """How many of the first ``n`` positions the observation leaves out: all or none."""
    return n if _raw(env)._exclude_current_positions_from_observation else 0


def _termination(raw: Any, unhealthy: VectorFunction) -> VectorFunction:
    return unhealthy if raw._terminate_when_unhealthy else Never()


def _forward_reward(raw: Any, hidden: int, unhealthy: VectorFunction | None = None) -> ForwardReward | None:
    if hidden:
        return None
    forward, control = float(raw._forward_reward_weight), float(raw._ctrl_cost_weight)
    if unhealthy is None:
        return ForwardReward(float(raw.dt), forward, control)
    # -v4 also pays the bonus on the step that terminates
    always = _is_v4(raw) and raw._terminate_when_unhealthy
    return ForwardReward(float(raw.dt), forward, control, float(raw._healthy_reward), None if always else unhealthy)
