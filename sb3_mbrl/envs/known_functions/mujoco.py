"""Known rewards and terminations of Gymnasium's MuJoCo environments, versions 4 and 5.

Limits and weights are read from the environment.

A reward is known only if the observation determines it. Forward velocities are differences of positions that are hidden by
default; with ``exclude_current_positions_from_observation=False`` they are in the observation and the reward is known. For Ant
and Humanoid it is never known: their velocity comes from body positions of the last inner simulation step, and contact forces
are clipped or hidden. Nothing here imports MuJoCo.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions.common import Never, TerminationReward, VectorFunction

Range = tuple[float, float]
"""The lower and the upper limit"""
Columns = tuple[int, int]
"""The first column and the column after the last one"""


@dataclass(frozen=True)
class Unhealthy(VectorFunction, saved_as="Unhealthy"):
    """
    The termination of walking robots, when a column of the next observation is not strictly within its limits. NaN never is.

    Hopper clips velocities to [-10, 10] in the observation, so velocities beyond wider limits (100 by default) go unnoticed
    here.

    :param limits: ``(column, low, high)`` for columns of the next observation
    :param rest: ``(first column, low, high)``: the limits of that column and all after it
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
    The termination of Ant, when the torso is too low or too high, or a position or velocity is not finite. The limits
    themselves are healthy.

    :param height: the column of the torso's height
    :param n_state: the number of columns of positions and velocities (contact forces follow)
    :param z_range: the limits of the torso's height, in metres
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
    """The termination when the pole's angle is beyond 0.2 rad, or the observation is not finite."""

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return ~next_obs.isfinite().all(-1) | (next_obs[..., 1].abs() > 0.2)


@dataclass(frozen=True)
class InvertedDoublePendulumTermination(VectorFunction, saved_as="InvertedDoublePendulumTermination"):
    """
    The termination when the tip of the second pole (0.6 m each) is at most 1 m high.

    The environment reads the tip's position at the last stage of its integrator, which differs by up to 5e-5 m from the one
    that follows from the observation.
    """

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        sin1, sin2, cos1, cos2 = next_obs[..., 1:5].unbind(-1)
        # y = 0.6 cos(theta1) + 0.6 cos(theta1 + theta2)
        return 0.6 * cos1 + 0.6 * (cos1 * cos2 - sin1 * sin2) <= 1.0


@dataclass(frozen=True)
class ForwardReward(VectorFunction, saved_as="ForwardReward"):
    """
    The reward ``forward_weight (x' - x) / dt - control_weight |a|^2 + healthy_reward [healthy]``, for observations that begin
    with the position ``x``.

    The velocity is a difference of positions: in float32 its error is about ``1e-7 |x| / dt``.

    :param dt: the seconds per step
    :param forward_weight: the weight of the velocity
    :param control_weight: the weight of the sum of the squared actions
    :param healthy_reward: the bonus for being healthy
    :param unhealthy: the function that tells when the bonus is withheld (``None``: never)
    """

    dt: float
    forward_weight: float
    control_weight: float
    healthy_reward: float = 0.0
    unhealthy: VectorFunction | None = None

    def compute(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        control_cost = self.control_weight * action.square().sum(-1)
        reward = self.forward_weight * (next_obs[..., 0] - obs[..., 0]) / self.dt - control_cost
        if self.unhealthy is None:
            return reward + self.healthy_reward
        return reward + self.healthy_reward * (~self.unhealthy(obs, action, next_obs)).to(reward.dtype)


@dataclass(frozen=True)
class DistanceReward(VectorFunction, saved_as="DistanceReward"):
    """
    The reward of Reacher and Pusher: minus weighted distances between points, minus a control cost.

    :param terms: ``(weight, columns of a point, columns of another point or None for the origin)`` for each distance
    :param control_weight: the weight of the sum of the squared actions
    :param before: whether distances are those before the step (version 4) instead of after it (version 5)
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
    The reward of HumanoidStandup: ``z / timestep - control_weight |a|^2 - clip(impact_weight |f|^2) + 1`` with the torso's
    height ``z`` and the contact forces ``f``.

    :param height: the column of the torso's height
    :param n_forces: the number of columns of contact forces, which are the last ones
    :param timestep: the seconds per inner simulation step
    :param control_weight: the weight of the sum of the squared actions
    :param impact_weight: the weight of the sum of the squared forces
    :param impact_range: the limits that the impact cost is clipped to
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
    """Make the functions of ``Hopper``."""
    raw, hidden = _raw(env), _hidden_positions(env, 1)
    limits = ((1 - hidden, *_range(raw._healthy_z_range)), (2 - hidden, *_range(raw._healthy_angle_range)))
    unhealthy = Unhealthy(limits, (2 - hidden, *_range(raw._healthy_state_range)))
    return EnvFunctions(_forward_reward(raw, hidden, unhealthy), _termination(raw, unhealthy))


def walker2d(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Walker2d``."""
    raw, hidden = _raw(env), _hidden_positions(env, 1)
    unhealthy = Unhealthy(((1 - hidden, *_range(raw._healthy_z_range)), (2 - hidden, *_range(raw._healthy_angle_range))))
    return EnvFunctions(_forward_reward(raw, hidden, unhealthy), _termination(raw, unhealthy))


def half_cheetah(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``HalfCheetah``."""
    return EnvFunctions(_forward_reward(_raw(env), _hidden_positions(env, 1)), Never())


def swimmer(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Swimmer``."""
    return EnvFunctions(_forward_reward(_raw(env), _hidden_positions(env, 2)), Never())


def ant(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Ant``."""
    raw, hidden = _raw(env), _hidden_positions(env, 2)
    n_state = int(raw.model.nq + raw.model.nv) - hidden
    return EnvFunctions(None, _termination(raw, AntUnhealthy(2 - hidden, n_state, _range(raw._healthy_z_range))))


def humanoid(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Humanoid``."""
    raw, hidden = _raw(env), _hidden_positions(env, 2)
    return EnvFunctions(None, _termination(raw, Unhealthy(((2 - hidden, *_range(raw._healthy_z_range)),))))


def humanoid_standup(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``HumanoidStandup``; its reward is known if contact forces are in the observation."""
    raw = _raw(env)
    if _is_v4(raw):
        reward = StandupReward(0, 6 * int(raw.model.nbody), float(raw.model.opt.timestep), 0.1, 0.5e-6, (-float("inf"), 10.0))
        return EnvFunctions(reward, Never())
    if not raw._include_cfrc_ext_in_observation:
        return EnvFunctions(None, Never())
    reward = StandupReward(
        height=2 - _hidden_positions(env, 2),
        n_forces=6 * (int(raw.model.nbody) - 1),  # without the forces on the world body, which are 0
        timestep=float(raw.model.opt.timestep),
        control_weight=float(raw._ctrl_cost_weight),
        impact_weight=float(raw._impact_cost_weight),
        impact_range=_range(raw._impact_cost_range),
    )
    return EnvFunctions(reward, Never())


def inverted_pendulum(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``InvertedPendulum``. The last step is rewarded in version 4, but not in version 5."""
    termination = InvertedPendulumTermination()
    return EnvFunctions(TerminationReward(1.0, 1.0 if _is_v4(_raw(env)) else 0.0, termination), termination)


def inverted_double_pendulum(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``InvertedDoublePendulum``, which hold for the poles of its stock model file."""
    stock = _has_model_file(env, "inverted_double_pendulum.xml")
    return EnvFunctions(None, InvertedDoublePendulumTermination() if stock else None)


def reacher(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Reacher``. Version 5 omits a height difference, which is 0 in its stock model file."""
    raw = _raw(env)
    if _is_v4(raw):
        return EnvFunctions(DistanceReward(((1.0, (8, 11), None),), 1.0, before=True), Never())
    if not _has_model_file(env, "reacher.xml"):
        return EnvFunctions(None, Never())
    terms = ((float(raw._reward_dist_weight), (8, 10), None),)
    return EnvFunctions(DistanceReward(terms, float(raw._reward_control_weight), before=False), Never())


def pusher(env: gym.Env) -> EnvFunctions:
    """Make the functions of ``Pusher``: the distances from arm to object and from object to goal."""
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
    """Return the number of the first ``n`` positions that the observation leaves out: all or none."""
    return n if _raw(env)._exclude_current_positions_from_observation else 0


def _termination(raw: Any, unhealthy: VectorFunction) -> VectorFunction:
    return unhealthy if raw._terminate_when_unhealthy else Never()


def _forward_reward(raw: Any, hidden: int, unhealthy: VectorFunction | None = None) -> ForwardReward | None:
    if hidden:
        return None
    forward, control = float(raw._forward_reward_weight), float(raw._ctrl_cost_weight)
    if unhealthy is None:
        return ForwardReward(float(raw.dt), forward, control)
    # Version 4 pays the bonus on the step that terminates, too.
    always = _is_v4(raw) and raw._terminate_when_unhealthy
    return ForwardReward(float(raw.dt), forward, control, float(raw._healthy_reward), None if always else unhealthy)
