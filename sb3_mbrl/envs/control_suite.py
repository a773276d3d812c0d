"""
Tasks of the DeepMind Control Suite as environments that SB3 trains in: ``gym.make("dmc/cheetah-run-v0")``.

They come through shimmy (``pip install "sb3-mbrl[dmc]"``); here observations are flattened to float32 vectors and actions are
repeated, which is how results are published. Nothing is imported until a task is made.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_mbrl.checks import whole

TASKS = (
    "acrobot-swingup", "ball_in_cup-catch", "cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup",
    "cartpole-swingup_sparse", "cheetah-run", "finger-spin", "finger-turn_easy", "finger-turn_hard", "fish-swim",
    "hopper-hop", "hopper-stand", "humanoid-run", "humanoid-stand", "humanoid-walk", "pendulum-swingup", "quadruped-run",
    "quadruped-walk", "reacher-easy", "reacher-hard", "swimmer-swimmer6", "walker-run", "walker-stand", "walker-walk",
)  # fmt: skip
"""The tasks that are registered; :func:`make` takes all others of the suite too"""


class ActionRepeat(gym.Wrapper):
    """
    Takes every action several times, or until the episode ends; rewards are summed.

    :param env: the environment
    :param repeat: how often an action is taken
    """

    def __init__(self, env: gym.Env, repeat: int) -> None:
        super().__init__(env)
        self.repeat = whole("action_repeat", repeat, 1)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make(task: str, *, action_repeat: int = 2, render_mode: str | None = None) -> gym.Env:
    """
    Make a task of the control suite. Its episodes are 1,000 steps of the simulation long, cut off by a time limit; rewards of
    one such step lie between 0 and 1.

    :param task: ``"cheetah-run"``, ``"cartpole-swingup"``, ...
    :param action_repeat: how many steps of the simulation an action lasts
    :param render_mode: as in Gymnasium
    :raises ImportError: when the extra is not installed
    """
    whole("action_repeat", action_repeat, 1)
    try:
        import shimmy
    except ImportError as error:
        raise _missing(task) from error
    gym.register_envs(shimmy)
    env_id = f"dm_control/{task}-v0"
    if env_id not in gym.registry:
        names = sorted(name.removeprefix("dm_control/").removesuffix("-v0") for name in gym.registry if "dm_control/" in name)
        raise _missing(task) if not names else ValueError(f"task={task!r}: the control suite has {', '.join(names)}")
    env = gym.make(env_id, render_mode=render_mode, disable_env_checker=True)
    flat = gym.wrappers.FlattenObservation(ActionRepeat(env, action_repeat))
    return gym.wrappers.DtypeObservation(flat, np.float32)


def _missing(task: str) -> ImportError:
    return ImportError(f'The task {task!r} needs shimmy and dm_control: pip install "sb3-mbrl[dmc]"')


def register() -> None:
    """Register ``dmc/<task>-v0`` with Gymnasium; ``import sb3_mbrl`` does it."""
    for task in TASKS:
        if (env_id := f"dmc/{task}-v0") not in gym.registry:
            gym.register(
                env_id, entry_point="sb3_mbrl.envs.control_suite:make", kwargs={"task": task}, disable_env_checker=True
            )
