"""
CartPole with a continuous force: balance and swing-up, 200 steps each, with rewards of at most 1 per step.

The equations of motion, the constants and the Euler step are those of Gymnasium's ``CartPole-v1`` (Barto, Sutton and Anderson
1983); the reward of the swing-up depends on the distance of the pole's tip from its goal, as in PETS's cartpole.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
X_LIMIT, THETA_LIMIT = 2.4, 12 * 2 * math.pi / 360
STEPS, SWING_UP_SKIP = 200, 2


def accelerations(theta_dot: Any, sin: Any, cos: Any, force: Any) -> tuple[Any, Any]:
    """
    Compute the accelerations of cart and pole. Takes numbers, arrays or tensors. With the cart's mass ``M``, the pole's mass
    ``m`` and its half length ``l``::

        push         = (force + m l theta_dot^2 sin(theta)) / (M + m)
        theta_dotdot = (g sin(theta) - cos(theta) push) / (l (4/3 - m cos(theta)^2 / (M + m)))
        x_dotdot     = push - m l theta_dotdot cos(theta) / (M + m)

    :param theta_dot: the pole's angular velocity, in radians per second
    :param sin: the sine of the pole's angle from upright
    :param cos: the cosine of that angle
    :param force: the force on the cart, in newtons
    :return: the accelerations of the cart (m/s^2) and of the pole (rad/s^2)
    """
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    push = (force + moment * theta_dot * theta_dot * sin) / mass
    theta_acceleration = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos * cos / mass))
    return push - moment * theta_acceleration * cos / mass, theta_acceleration


def kick(x_dot: Any, cos: Any) -> Any:
    """
    Compute the change of the pole's velocity when the cart is stopped dead. It is the pole's equation of motion,
    ``4/3 l theta'' = g sin(theta) - x'' cos(theta)``, integrated over an instant, in which ``x'`` falls to 0.

    :param x_dot: the velocity of the cart before, in metres per second
    :param cos: the cosine of the pole's angle from upright
    :return: the change of the pole's velocity, in radians per second
    """
    return cos * x_dot / (4.0 / 3.0 * HALF_LENGTH)


class ContinuousCartPole(gym.Env[np.ndarray, np.ndarray]):
    """
    The environment ``CartPoleBalance-v0``: as in ``CartPole-v1``, the reward is 1 per step until the pole falls or the cart
    leaves the track.

    Observations are ``(x, x_dot, theta, theta_dot)``; the action is the force in tens of newtons, from -1 to 1.
    """

    metadata: dict[str, Any] = {**CartPoleEnv.metadata, "render_fps": round(1 / DT)}  # noqa: RUF012
    frame_skip = 1
    """The number of Euler steps under the same force"""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = self._observation_space()
        self._drawing = CartPoleEnv(render_mode=render_mode)
        self.state = np.zeros(4)
        """``(x, x_dot, theta, theta_dot)``"""

    def _observation_space(self) -> spaces.Box:
        high = np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], np.float32)
        return spaces.Box(-high, high)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.05, 0.05, 4) + self._rest_state()
        self._render_for_human()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = float(np.clip(np.asarray(action).flatten()[0], -1.0, 1.0))
        for _ in range(self.frame_skip):
            x, x_dot, theta, theta_dot = self.state
            x_acceleration, theta_acceleration = accelerations(theta_dot, math.sin(theta), math.cos(theta), FORCE * force)
            self.state = np.array(
                [x + DT * x_dot, x_dot + DT * x_acceleration, theta + DT * theta_dot, theta_dot + DT * theta_acceleration]
            )
            self._stop_at_track_ends()
        self._render_for_human()
        return self._observation(), self._reward(force), self._terminated(), False, {}

    def render(self) -> Any:
        """Draw the environment as Gymnasium draws ``CartPole-v1``."""
        if self.render_mode is None:
            return super().render()
        self._drawing.state = self.state
        return self._drawing.render()

    def close(self) -> None:
        self._drawing.close()

    def _render_for_human(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _rest_state(self) -> np.ndarray:
        return np.zeros(4)

    def _stop_at_track_ends(self) -> None:
        """Do nothing: when the cart leaves the track, the episode terminates."""

    def _observation(self) -> np.ndarray:
        return self.state.astype(np.float32)

    def _reward(self, force: float) -> float:
        return 1.0

    def _terminated(self) -> bool:
        return bool(abs(self.state[0]) > X_LIMIT or abs(self.state[2]) > THETA_LIMIT)


class CartPoleSwingUp(ContinuousCartPole):
    """
    The environment ``CartPoleSwingUp-v0``: the pole hangs down at first, and has to stand above the middle of the track. A
    force acts for two Euler steps, 0.04 s. Episodes never terminate: at the ends of the track, 2.4 m from its middle, the cart
    stops dead, and the pole swings on. (On a track without ends, random forces carry the cart tens of metres away, where
    rewards are 0 whatever the pole does.)

    Observations are ``(x, x_dot, cos(theta), sin(theta), theta_dot)``; the reward is ``exp(-d^2 / l^2) - 0.01 a^2`` with the
    distance ``d`` of the tip from its goal and the pole's length ``l``.
    """

    metadata: dict[str, Any] = {**CartPoleEnv.metadata, "render_fps": round(1 / (DT * SWING_UP_SKIP))}  # noqa: RUF012
    frame_skip = SWING_UP_SKIP

    def _observation_space(self) -> spaces.Box:
        high = np.array([X_LIMIT, np.inf, 1.0, 1.0, np.inf], np.float32)
        return spaces.Box(-high, high)

    def _rest_state(self) -> np.ndarray:
        return np.array([0.0, 0.0, math.pi, 0.0])

    def _stop_at_track_ends(self) -> None:
        x, x_dot, theta, theta_dot = self.state
        if abs(x) > X_LIMIT:
            self.state[0] = math.copysign(X_LIMIT, x)
            if x * x_dot > 0:
                self.state[1] = 0.0
                self.state[3] = theta_dot + kick(x_dot, math.cos(theta))

    def _observation(self) -> np.ndarray:
        x, x_dot, theta, theta_dot = self.state
        return np.array([x, x_dot, math.cos(theta), math.sin(theta), theta_dot], np.float32)

    def _reward(self, force: float) -> float:
        x, _, theta, _ = self.state
        length = 2 * HALF_LENGTH
        # The tip is at (x + l sin(theta), l cos(theta)), its goal at (0, l).
        squared_distance = (x + length * math.sin(theta)) ** 2 + (length * (math.cos(theta) - 1)) ** 2
        return math.exp(-squared_distance / length**2) - 0.01 * force**2

    def _terminated(self) -> bool:
        return False


def register() -> None:
    """Register both environments with Gymnasium; ``import sb3_mbrl`` does it."""
    for env_id, name in (("CartPoleBalance-v0", "ContinuousCartPole"), ("CartPoleSwingUp-v0", "CartPoleSwingUp")):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=f"sb3_mbrl.envs.cartpole:{name}", max_episode_steps=STEPS)
