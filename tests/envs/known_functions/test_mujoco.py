"""Known functions of MuJoCo's robots."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch as th

from sb3_mbrl.envs.known_functions import mujoco
from sb3_mbrl.envs.known_functions.common import Never
from tests.envs.functions import check, collect, functions_of, make


@pytest.mark.parametrize(
    "env_id", ["Hopper-v4", "Hopper-v5", "Walker2d-v4", "Walker2d-v5", "HalfCheetah-v4", "HalfCheetah-v5", "Swimmer-v5"]
)
@pytest.mark.parametrize("terminate", [True, False])
def test_reward_is_known_where_the_position_is_observed(env_id, terminate):
    health = {} if env_id[0] in "HS" and "Hopper" not in env_id else {"terminate_when_unhealthy": terminate}
    env = make(env_id, exclude_current_positions_from_observation=False, **health)
    functions = functions_of(env_id, env)
    assert functions.reward_fn is not None
    rows = collect(env, 300)
    check(functions, rows)
    if health:
        assert rows["terminated"].any() == terminate


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"])
def test_terminate_when_unhealthy_false_never_terminates(env_id):
    functions = functions_of(env_id, make(env_id, terminate_when_unhealthy=False))
    assert functions.termination_fn == Never()


def test_hopper_velocity_limit_holds_on_both_sides():
    """Named regression: the first published function compared, then took the absolute value of the truth: -150 passed."""
    termination = functions_of("Hopper-v5", make("Hopper-v5")).termination_fn
    assert termination is not None
    healthy = th.zeros(4, 11)
    healthy[:, 0] = 1.25
    healthy[1, 7], healthy[2, 7] = -150.0, 150.0
    assert termination(healthy, th.zeros(4, 3), healthy).tolist() == [False, True, True, False]


def test_limits_of_the_published_functions():
    """z and angle limits as in the appendix of MBPO, at and just beyond the limit."""

    def ends(env_id: str, column: int, values: list[float], size: int, z: float) -> list[bool]:
        obs = th.zeros(len(values), size)
        obs[:, 0] = z
        obs[:, column] = th.tensor(values)
        return functions_of(env_id, make(env_id)).termination_fn(obs, obs, obs).tolist()  # type: ignore[misc]

    assert ends("Hopper-v5", 0, [0.69, 0.71, 50.0], 11, 1.0) == [True, False, False]
    assert ends("Hopper-v5", 1, [-0.21, -0.19, 0.19, 0.21], 11, 1.0) == [True, False, False, True]
    assert ends("Walker2d-v5", 0, [0.79, 0.81, 1.99, 2.01], 17, 1.0) == [True, False, False, True]
    assert ends("Walker2d-v5", 1, [-1.01, -0.99, 0.99, 1.01], 17, 1.0) == [True, False, False, True]
    assert ends("Ant-v5", 0, [0.19, 0.21, 1.0, 1.01], 105, 1.0) == [True, False, False, True]
    assert ends("Humanoid-v5", 0, [0.99, 1.0, 1.01, 1.99, 2.0], 348, 1.4) == [True, True, False, False, True]
    assert ends("InvertedPendulum-v5", 1, [-0.21, -0.19, 0.19, 0.21], 4, 0.0) == [True, False, False, True]
    assert ends("HalfCheetah-v5", 0, [-1e9, 1e9], 17, 0.0) == [False, False]


@pytest.mark.parametrize(
    ("env_id", "size", "ends"),
    [("InvertedPendulum-v5", 4, True), ("Hopper-v5", 11, True), ("Ant-v5", 105, True), ("HalfCheetah-v5", 17, False)],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_terminates_where_the_environment_checks_it(env_id, size, ends, value):
    obs = th.zeros(1, size)
    obs[0, 0] = 0.8
    termination = functions_of(env_id, make(env_id)).termination_fn
    assert termination is not None
    assert not termination(obs, obs, obs).item()
    obs[0, 3] = value
    assert termination(obs, obs, obs).item() == ends


def test_pusher_v4_reward_of_a_known_state():
    """Pusher-v4 does not run on MuJoCo 3 and newer: arm 5 from the object, object 1 from the goal, before the step."""
    raw = type("PusherEnv", (), {"__module__": "gymnasium.envs.mujoco.pusher_v4"})()
    reward = mujoco.pusher(SimpleNamespace(unwrapped=raw)).reward_fn  # type: ignore[arg-type]
    obs = th.zeros(1, 23)
    obs[0, 14:17] = th.tensor([3.0, 4.0, 0.0])
    obs[0, 20] = 1.0
    assert reward is not None
    assert reward(obs, th.full((1, 7), 2.0), th.full((1, 23), 9.0)).item() == pytest.approx(-0.5 * 5 - 1 - 0.1 * 28)


def test_custom_model_files_do_not_get_the_geometry_of_the_stock_ones():
    for env_id in ("InvertedDoublePendulum-v5", "Reacher-v5"):
        env = make(env_id)
        env.unwrapped.fullpath = "/elsewhere/longer.xml"
        functions = functions_of(env_id, env)
        assert functions.reward_fn is None
        assert functions.termination_fn == (Never() if env_id == "Reacher-v5" else None)


def test_import_needs_no_mujoco():
    code = "import sys, sb3_mbrl.envs.known_functions; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ant_looks_at_positions_and_velocities_only():
    """The environment does not check its contact forces, which are the last 78 of 105 numbers."""
    termination = functions_of("Ant-v5", make("Ant-v5")).termination_fn
    assert termination is not None
    obs = th.full((105,), 0.5).repeat(2, 1)
    obs[0, 26], obs[1, 27] = float("nan"), float("nan")
    assert termination(obs, obs, obs).tolist() == [True, False]
