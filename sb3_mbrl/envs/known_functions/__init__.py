"""Known rewards and terminations of well-known environments, so that a world model need not learn them.

Each record of :data:`ENV_FUNCTIONS` builds them from an environment, whose own limits and weights it reads. They hold for the
environment itself: behind a wrapper that changes observations, actions, rewards or the step, nothing is known and both are
``None``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym

from sb3_mbrl.contracts import EnvFunctions, EnvFunctionsSpec
from sb3_mbrl.envs.known_functions import classic_control, mujoco
from sb3_mbrl.envs.wrappers import effective_stack


@dataclass(frozen=True)
class _IfUnchanged:
    """A factory of functions that knows none for environments which a wrapper changes."""

    factory: Callable[[gym.Env], EnvFunctions]

    def __call__(self, env: gym.Env) -> EnvFunctions:
        return self.factory(env) if len(effective_stack(env)) == 1 else EnvFunctions()


def _spec(
    name: str, factory: Callable[[gym.Env], EnvFunctions], *env_ids: str, whose: str = "Gymnasium's"
) -> EnvFunctionsSpec:
    summary = f"{whose} {' and '.join(env_ids)}"
    return EnvFunctionsSpec(name=name, factory=_IfUnchanged(factory), env_ids=env_ids, summary=summary)


ENV_FUNCTIONS: list[EnvFunctionsSpec] = [
    _spec("cart_pole", classic_control.cart_pole, "CartPole-v[01]"),
    _spec("cart_pole_balance", classic_control.cart_pole_balance, "CartPoleBalance-v0", whose="our"),
    _spec("cart_pole_swing_up", classic_control.cart_pole_swing_up, "CartPoleSwingUp-v0", whose="our"),
    _spec("pendulum", classic_control.pendulum, "Pendulum-v1"),
    _spec("mountain_car", classic_control.mountain_car, "MountainCar-v0"),
    _spec("continuous_mountain_car", classic_control.continuous_mountain_car, "MountainCarContinuous-v0"),
    _spec("acrobot", classic_control.acrobot, "Acrobot-v1"),
    _spec("inverted_pendulum", mujoco.inverted_pendulum, "InvertedPendulum-v[45]"),
    _spec("inverted_double_pendulum", mujoco.inverted_double_pendulum, "InvertedDoublePendulum-v[45]"),
    _spec("hopper", mujoco.hopper, "Hopper-v[45]"),
    _spec("walker2d", mujoco.walker2d, "Walker2d-v[45]"),
    _spec("half_cheetah", mujoco.half_cheetah, "HalfCheetah-v[45]"),
    _spec("ant", mujoco.ant, "Ant-v[45]"),
    _spec("humanoid", mujoco.humanoid, "Humanoid-v[45]"),
    _spec("humanoid_standup", mujoco.humanoid_standup, "HumanoidStandup-v[45]"),
    _spec("swimmer", mujoco.swimmer, "Swimmer-v[45]"),
    _spec("reacher", mujoco.reacher, "Reacher-v[45]"),
    _spec("pusher", mujoco.pusher, "Pusher-v[45]"),
]
"""The built-in records, one per family of environments"""
