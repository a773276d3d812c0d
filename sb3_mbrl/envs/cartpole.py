"""
CartPole with a continuous force: balance and swing-up, 200 steps each, at most 1 a step.

The equations of motion, constants and the Euler step are those of Gymnasium's ``CartPole-v1`` (Barto, Sutton and Anderson
1983); the reward of the swing-up is the distance of the pole's tip from where it should be, as in PETS's cartpole.
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
    Of numbers, arrays or tensors alike.

    :param theta_dot: radians per second
    :param sin: of the pole's angle from upright
    :param cos: likewise
    :param force: on the cart, in newtons
    :return: of the cart (m/s^2) and of the pole (rad/s^2)
    """
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    push = (force + moment * theta_dot * theta_dot * sin) / mass
    theta_acceleration = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos * cos / mass))
    return push - moment * theta_acceleration * cos / mass, theta_acceleration


def kick(x_dot: Any, cos: Any) -> Any:
    """
    What the pole gains when the cart is stopped dead: its equation of motion over an instant,
    ``4/3 l theta'' = g sin(theta) - x'' cos(theta)``.

    :param x_dot: velocity of the cart before, in metres per second
    :param cos: of the pole's angle from upright
    :return: change of the pole's velocity, in radians per second
    """
    return cos * x_dot / (4.0 / 3.0 * HALF_LENGTH)


class ContinuousCartPole(gym.Env[np.ndarray, np.ndarray]):
    """
    ``CartPoleBalance-v0``: as ``CartPole-v1``, 1 a step until the pole falls or the cart leaves the track.

    Observations are ``(x, x_dot, theta, theta_dot)``, actions the force in tens of newtons, from -1 to 1.
    """

    metadata: dict[str, Any] = {**CartPoleEnv.metadata, "render_fps": round(1 / DT)}  # noqa: RUF012
    frame_skip = 1
    """Euler steps under the same force"""

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
        self.state = self.np_random.uniform(-0.05, 0.05, 4) + self._rest()
        self._show()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = float(np.clip(np.asarray(action).flatten()[0], -1.0, 1.0))
        for _ in range(self.frame_skip):
            x, x_dot, theta, theta_dot = self.state
            x_acceleration, theta_acceleration = accelerations(theta_dot, math.sin(theta), math.cos(theta), FORCE * force)
            self.state = np.array(
                [x + DT * x_dot, x_dot + DT * x_acceleration, theta + DT * theta_dot, theta_dot + DT * theta_acceleration]
            )
            self._at_the_ends()
        self._show()
        return self._observation(), self._reward(force), self._terminated(), False, {}

    def render(self) -> Any:
        """As Gymnasium draws ``CartPole-v1``."""
        if self.render_mode is None:
            return super().render()
        self._drawing.state = self.state
        return self._drawing.render()

    def close(self) -> None:
        self._drawing.close()

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _rest(self) -> np.ndarray:
        return np.zeros(4)

    def _at_the_ends(self) -> None:
        """Of the track: the episode is over there."""

    def _observation(self) -> np.ndarray:
        return self.state.astype(np.float32)

    def _reward(self, force: float) -> float:
        return 1.0

    def _terminated(self) -> bool:
        return bool(abs(self.state[0]) > X_LIMIT or abs(self.state[2]) > THETA_LIMIT)


class CartPoleSwingUp(ContinuousCartPole):
    """
    ``CartPoleSwingUp-v0``: the pole hangs down and is to stand above the middle of the track. A force acts for two Euler
    steps, 0.04 s. Nothing ends an episode: at the ends of the track, 2.4 m from its middle, the cart stops dead, and the pole
    swings on. (Without ends, random forces carry the cart tens of metres away, where rewards are 0 whatever the pole does.)

    Observations are ``(x, x_dot, cos(theta), sin(theta), theta_dot)``; the reward is ``exp(-d^2 / l^2) - 0.01 a^2`` with the
    distance ``d`` of the tip from its goal and the pole's length ``l``.
    """

    metadata: dict[str, Any] = {**CartPoleEnv.metadata, "render_fps": round(1 / (DT * SWING_UP_SKIP))}  # noqa: RUF012
    frame_skip = SWING_UP_SKIP

    def _observation_space(self) -> spaces.Box:
        high = np.array([X_LIMIT, np.inf, 1.0, 1.0, np.inf], np.float32)
        return spaces.Box(-high, high)

    def _rest(self) -> np.ndarray:
        return np.array([0.0, 0.0, math.pi, 0.0])

    def _at_the_ends(self) -> None:
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
        distance = (x + length * math.sin(theta)) ** 2 + (length * (math.cos(theta) - 1)) ** 2
        return math.exp(-distance / length**2) - 0.01 * force**2

    def _terminated(self) -> bool:
        return False


def register() -> None:
    """Make them known to Gymnasium; done when ``sb3_mbrl`` is imported."""
    for env_id, name in (("CartPoleBalance-v0", "ContinuousCartPole"), ("CartPoleSwingUp-v0", "CartPoleSwingUp")):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=f"sb3_mbrl.envs.cartpole:{name}", max_episode_steps=STEPS)
