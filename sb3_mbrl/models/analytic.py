"""Analytic models: twins of classic-control environments in differentiable tensors. Nothing is learned.

They have known answers for tests of everything that rolls a model out, and separate errors of planners and policies from
errors of models.
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Obs, Prediction, RewardFn, TerminationFn, UnsupportedSpace, WorldModel, call_known
from sb3_mbrl.envs import cartpole
from sb3_mbrl.envs.known_functions.classic_control import CartPoleTermination, PendulumReward, SwingUpReward
from sb3_mbrl.envs.known_functions.common import Never, TerminationReward, VectorFunction
from sb3_mbrl.spaces import ActionCodec
from sb3_mbrl.trees import State


class KnownModel(WorldModel):
    """
    The base class of analytic models. They are deterministic, and states have the precision of the observations given.

    :param observation_space: the observation space of the real environment (default: that of the twin)
    :param action_space: the action space of the real environment (default: that of the twin)
    :param reward_fn: a known reward that replaces the environment's
    :param termination_fn: a known termination that replaces the environment's
    :param device: the device of states, as in SB3
    :raises UnsupportedSpace: for spaces that are not the environment's
    """

    fitted = True
    env_spaces: ClassVar[tuple[spaces.Box, spaces.Space]]
    """The environment's observation space and action space"""
    env_reward: VectorFunction
    """The environment's reward"""
    env_termination: VectorFunction
    """The environment's termination"""

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        *,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
    ) -> None:
        for space, own in zip((observation_space, action_space), self.env_spaces, strict=True):
            if space is not None and space != own:
                raise UnsupportedSpace(f"{type(self).__name__} is a twin of an environment with {own}, got {space}")
        super().__init__(*self.env_spaces, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self._actions = ActionCodec(self.action_space)

    @abstractmethod
    def transition(self, state: State, action: th.Tensor) -> State:
        """
        Compute the next state by the environment's equations of motion.

        :param state: columns ``(B,)`` by name
        :param action: ``(B, A)``, in the environment's units
        """

    def step(
        self, state: State, action: th.Tensor, *, deterministic: bool = False, generator: th.Generator | None = None
    ) -> Prediction:
        """Compute a step of the environment (:meth:`WorldModel.step`), which has no randomness."""
        action = self._actions.to_env(action)
        next_state = self.transition(state, action)
        obs, next_obs = self.decode(state), self.decode(next_state)
        seen = obs, action, next_obs
        reward = call_known("reward_fn", self.reward_fn or self.env_reward, seen, len(action))
        terminated = call_known("termination_fn", self.termination_fn or self.env_termination, seen, len(action))
        return Prediction(next_state, reward, terminated.to(reward.dtype))

    def _observed(self, obs: Obs) -> th.Tensor:
        """Move observations to the model's device."""
        if isinstance(obs, dict):
            raise UnsupportedSpace(f"{type(self).__name__} takes plain observations (B, D), not a dictionary")
        return obs.to(self.device)


class PendulumModel(KnownModel):
    """
    A twin of ``Pendulum-v1``. The state is ``theta`` (radians, not wrapped) and ``theta_dot`` (radians per second).

    :param g: the gravitational acceleration
    """

    env_spaces = (
        spaces.Box(-np.array([1, 1, 8], np.float32), np.array([1, 1, 8], np.float32)),
        spaces.Box(-2.0, 2.0, (1,), np.float32),
    )
    dt, mass, length, max_torque, max_speed = 0.05, 1.0, 1.0, 2.0, 8.0

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        *,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
        g: float = 10.0,
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self.g = g
        self.env_reward, self.env_termination = PendulumReward(self.max_torque), Never()

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        """Return the states of observations ``(cos(theta), sin(theta), theta_dot)``, ``(B, 3)``."""
        cos, sin, theta_dot = self._observed(obs).unbind(-1)
        return {"theta": th.atan2(sin, cos), "theta_dot": theta_dot}

    def transition(self, state: State, action: th.Tensor) -> State:
        # The angular acceleration is 3 g / (2 l) sin(theta) + 3 / (m l^2) torque. Then Euler steps of theta_dot
        # and, with the new one, of theta.
        theta, torque = state["theta"], action[:, 0].clamp(-self.max_torque, self.max_torque)
        acceleration = 1.5 * self.g / self.length * theta.sin() + 3.0 / (self.mass * self.length**2) * torque
        theta_dot = (state["theta_dot"] + acceleration * self.dt).clamp(-self.max_speed, self.max_speed)
        return {"theta": theta + theta_dot * self.dt, "theta_dot": theta_dot}

    def decode(self, state: State) -> th.Tensor:
        """Return the observations ``(cos(theta), sin(theta), theta_dot)``, ``(B, 3)``."""
        return th.stack([state["theta"].cos(), state["theta"].sin(), state["theta_dot"]], dim=-1)


class CartPoleModel(KnownModel):
    """
    A twin of ``CartPole-v1``, exact until the first termination. The state is ``x`` (metres), ``theta`` (radians) and their
    velocities.

    :param sutton_barto_reward: whether rewards are 0 per step and -1 at the termination instead of 1 per step (the
        environment's option)
    """

    x_limit, theta_limit = cartpole.X_LIMIT, cartpole.THETA_LIMIT
    _high = np.array([2 * x_limit, np.inf, 2 * theta_limit, np.inf], np.float32)
    env_spaces: ClassVar[tuple[spaces.Box, spaces.Space]] = (spaces.Box(-_high, _high), spaces.Discrete(2))

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        *,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        device: th.device | str = "auto",
        sutton_barto_reward: bool = False,
    ) -> None:
        super().__init__(observation_space, action_space, reward_fn=reward_fn, termination_fn=termination_fn, device=device)
        self.env_termination = CartPoleTermination(self.x_limit, self.theta_limit)
        self.env_reward = TerminationReward(*((0.0, -1.0) if sutton_barto_reward else (1.0, 1.0)), self.env_termination)

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        """Return the states of observations ``(x, x_dot, theta, theta_dot)``, ``(B, 4)``, which are the same numbers."""
        return dict(zip(("x", "x_dot", "theta", "theta_dot"), self._observed(obs).unbind(-1), strict=True))

    def transition(self, state: State, action: th.Tensor) -> State:
        push = th.full_like(state["x"], cartpole.FORCE)
        return _cart_pole(state, th.where(action[:, 0] == 1, push, -push))

    def decode(self, state: State) -> th.Tensor:
        """
        Return the observations ``(x, x_dot, theta, theta_dot)``, ``(B, 4)``, clipped to the space, whose bounds are twice the
        limits of an episode.
        """
        obs = th.stack([state[name] for name in ("x", "x_dot", "theta", "theta_dot")], dim=-1)
        high = th.as_tensor(self._high, dtype=obs.dtype, device=obs.device)
        return obs.clamp(-high, high)


class CartPoleSwingUpModel(KnownModel):
    """A twin of ``CartPoleSwingUp-v0``. The state is ``x`` (metres), ``theta`` (radians, not wrapped) and their velocities."""

    _high = np.array([cartpole.X_LIMIT, np.inf, 1.0, 1.0, np.inf], np.float32)
    env_spaces = (spaces.Box(-_high, _high), spaces.Box(-1.0, 1.0, (1,), np.float32))
    env_reward, env_termination = SwingUpReward(2 * cartpole.HALF_LENGTH), Never()

    def initial(self, obs: Obs, snapshot: th.Tensor | None = None) -> State:
        """Return the states of observations ``(x, x_dot, cos(theta), sin(theta), theta_dot)``, ``(B, 5)``."""
        x, x_dot, cos, sin, theta_dot = self._observed(obs).unbind(-1)
        return {"x": x, "x_dot": x_dot, "theta": th.atan2(sin, cos), "theta_dot": theta_dot}

    def transition(self, state: State, action: th.Tensor) -> State:
        force = cartpole.FORCE * action[:, 0].clamp(-1, 1)
        for _ in range(cartpole.SWING_UP_SKIP):
            state = self._stopped(_cart_pole(state, force))
        return state

    @staticmethod
    def _stopped(state: State) -> State:
        """Stop the cart at the ends of the track, which kicks the pole."""
        x, x_dot = state["x"], state["x_dot"]
        stops = (x.abs() > cartpole.X_LIMIT) & (x * x_dot > 0)
        kicked = state["theta_dot"] + cartpole.kick(x_dot, state["theta"].cos())
        return {
            "x": x.clamp(-cartpole.X_LIMIT, cartpole.X_LIMIT),
            "x_dot": th.where(stops, 0.0, x_dot),
            "theta": state["theta"],
            "theta_dot": th.where(stops, kicked, state["theta_dot"]),
        }

    def decode(self, state: State) -> th.Tensor:
        """Return the observations ``(x, x_dot, cos(theta), sin(theta), theta_dot)``, ``(B, 5)``."""
        return th.stack([state["x"], state["x_dot"], state["theta"].cos(), state["theta"].sin(), state["theta_dot"]], dim=-1)


class CartPoleBalanceModel(CartPoleModel):
    """A twin of ``CartPoleBalance-v0``: a :class:`CartPoleModel` with a continuous force."""

    env_spaces = (spaces.Box(-CartPoleModel._high, CartPoleModel._high), spaces.Box(-1.0, 1.0, (1,), np.float32))

    def transition(self, state: State, action: th.Tensor) -> State:
        return _cart_pole(state, cartpole.FORCE * action[:, 0].clamp(-1, 1))


def _cart_pole(state: State, force: th.Tensor) -> State:
    """Compute one Euler step of the cart and the pole, ``q <- q + dt q_dot`` for positions and velocities alike."""
    theta = state["theta"]
    x_acceleration, theta_acceleration = cartpole.accelerations(state["theta_dot"], theta.sin(), theta.cos(), force)
    return {
        "x": state["x"] + cartpole.DT * state["x_dot"],
        "x_dot": state["x_dot"] + cartpole.DT * x_acceleration,
        "theta": theta + cartpole.DT * state["theta_dot"],
        "theta_dot": state["theta_dot"] + cartpole.DT * theta_acceleration,
    }
