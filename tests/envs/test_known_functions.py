"""Known rewards and terminations agree with the environments themselves, step by step."""

import pickle
import subprocess
import sys
import warnings
from fnmatch import fnmatchcase
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl.contracts import EnvFunctions
from sb3_mbrl.envs.known_functions import ENV_FUNCTIONS, mujoco
from sb3_mbrl.envs.known_functions.common import Never

CLASSIC = ["CartPole-v0", "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
ROBOTS = [
    "InvertedPendulum",
    "InvertedDoublePendulum",
    "Hopper",
    "Walker2d",
    "HalfCheetah",
    "Ant",
    "Humanoid",
    "HumanoidStandup",
]
ROBOTS += ["Swimmer", "Reacher", "Pusher"]
MUJOCO = [f"{robot}-v{version}" for robot in ROBOTS for version in (4, 5) if (robot, version) != ("Pusher", 4)]
HIDDEN_REWARD = {"Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "Swimmer", "InvertedDoublePendulum"}


def make(env_id: str, **kwargs) -> gym.Env:
    if env_id not in CLASSIC:
        pytest.importorskip("mujoco")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "-v4 is out of date"
        return gym.make(env_id, **kwargs)


def functions_of(env_id: str, env: gym.Env) -> EnvFunctions:
    (spec,) = [spec for spec in ENV_FUNCTIONS if any(fnmatchcase(env_id, pattern) for pattern in spec.env_ids)]
    functions = spec.factory(env)  # type: ignore[operator]
    return pickle.loads(pickle.dumps(functions))  # agents save them


def collect(env: gym.Env, n_steps: int, action=None) -> dict[str, np.ndarray]:
    """Random steps over several episodes, laid out as SB3 stores them (in the environment's own precision)."""
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for _ in range(n_steps):
        a = env.action_space.sample() if action is None else action(obs)
        next_obs, reward, terminated, truncated, _ = env.step(a)
        rows.append((obs, np.atleast_1d(a), next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    return dict(
        zip(("obs", "action", "next_obs", "reward", "terminated"), map(np.array, zip(*rows, strict=True)), strict=True)
    )


def check(functions: EnvFunctions, rows: dict[str, np.ndarray]) -> None:
    exact = [th.as_tensor(rows[key]) for key in ("obs", "action", "next_obs")]
    stored = [part.float() if part.is_floating_point() else part for part in exact]
    if functions.termination_fn is not None:
        for parts in (exact, stored):
            terminated = functions.termination_fn(*parts)
            assert terminated.dtype == th.bool
            assert terminated.tolist() == rows["terminated"].tolist()
    if functions.reward_fn is not None:
        reward = functions.reward_fn(*exact)
        assert reward.shape == (len(rows["reward"]),)
        np.testing.assert_allclose(reward, rows["reward"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env_id", CLASSIC + MUJOCO)
def test_agrees_with_the_environment_on_random_steps(env_id):
    env = make(env_id)
    functions = functions_of(env_id, env)
    check(functions, collect(env, 300))
    assert functions.termination_fn is not None
    assert (functions.reward_fn is None) == (env_id.split("-")[0] in HIDDEN_REWARD)


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "InvertedPendulum-v5", "InvertedDoublePendulum-v4", "Hopper-v5", "Walker2d-v4"]
)
def test_random_steps_do_see_terminations(env_id):
    """Otherwise the agreement above would say nothing about them."""
    assert collect(make(env_id), 300)["terminated"].sum() >= 2


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


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {"sutton_barto_reward": True}),
        ("MountainCar-v0", {"goal_velocity": 0.01}),
        ("Hopper-v5", {"healthy_z_range": (1.2, 1.3), "healthy_state_range": (-3.0, 3.0)}),
        ("Walker2d-v5", {"healthy_angle_range": (-0.05, 0.1)}),
        ("Ant-v5", {"healthy_z_range": (0.6, 0.8)}),
        ("Ant-v5", {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}),
        ("Ant-v4", {"use_contact_forces": True, "healthy_z_range": (0.5, 0.8)}),
        ("Humanoid-v5", {"exclude_current_positions_from_observation": False, "healthy_z_range": (1.3, 1.45)}),
        ("HumanoidStandup-v5", {"exclude_current_positions_from_observation": False, "impact_cost_weight": 1e-4}),
        ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.3}),
        ("Pusher-v5", {"reward_near_weight": 0.7, "reward_dist_weight": 2.0, "reward_control_weight": 0.3}),
    ],
)
def test_limits_and_weights_are_read_from_the_environment(env_id, kwargs):
    env = make(env_id, **kwargs)
    rows = collect(env, 200)
    check(functions_of(env_id, env), rows)
    if any("healthy" in key for key in kwargs):  # narrowed, so that random steps break them
        assert rows["terminated"].any()


def test_mountain_cars_reach_the_flag():
    """Random actions never do: push along the velocity."""
    env = make("MountainCar-v0")
    rows = collect(env, 200, lambda obs: 2 if obs[1] >= 0 else 0)
    assert rows["terminated"].any()
    check(functions_of("MountainCar-v0", env), rows)
    env = make("MountainCarContinuous-v0")
    rows = collect(
        env, 200, lambda obs: np.array([1.5 if obs[1] >= 0 else -1.0], np.float32)
    )  # the cost is of the unclipped action
    assert rows["terminated"].any()
    check(functions_of("MountainCarContinuous-v0", env), rows)


def test_acrobot_reaches_the_line():
    env = make("Acrobot-v1")
    rows = collect(env, 400, lambda obs: 2 if obs[4] <= 0 else 0)
    assert rows["terminated"].any()
    check(functions_of("Acrobot-v1", env), rows)


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


def test_rewards_are_differentiable():
    """Planners and policies may follow the gradient: d(-0.001 u^2)/du = -0.002 u."""
    reward = functions_of("Pendulum-v1", make("Pendulum-v1")).reward_fn
    assert reward is not None
    obs, action = th.tensor([[1.0, 0.0, 0.5]], requires_grad=True), th.tensor([[1.5]], requires_grad=True)
    reward(obs, action, obs.detach()).sum().backward()
    assert action.grad.item() == pytest.approx(-0.003)
    assert obs.grad[0].tolist() == pytest.approx([0.0, 0.0, -0.1])


def test_nothing_is_known_of_an_environment_that_a_wrapper_changes():
    env = make("Pendulum-v1")
    neutral = wrappers.RecordEpisodeStatistics(Monitor(wrappers.TimeLimit(env, 7)))
    assert functions_of("Pendulum-v1", neutral).reward_fn is not None
    for changed in (
        wrappers.RescaleAction(env, -1.0, 1.0),
        wrappers.TransformReward(env, lambda reward: reward / 10),
        Monitor(wrappers.TransformObservation(env, lambda obs: obs[::-1], env.observation_space)),
        wrappers.StickyAction(env, 0.25),
    ):
        assert functions_of("Pendulum-v1", changed) == EnvFunctions()


def test_custom_model_files_do_not_get_the_geometry_of_the_stock_ones():
    for env_id in ("InvertedDoublePendulum-v5", "Reacher-v5"):
        env = make(env_id)
        env.unwrapped.fullpath = "/elsewhere/longer.xml"
        functions = functions_of(env_id, env)
        assert functions.reward_fn is None
        assert functions.termination_fn == (Never() if env_id == "Reacher-v5" else None)


def test_dictionary_observations_are_refused():
    obs = {"observation": th.zeros(1, 3)}
    with pytest.raises(TypeError, match="not a dictionary"):
        Never()(obs, th.zeros(1, 1), obs)


def test_import_needs_no_mujoco():
    code = "import sys, sb3_mbrl.envs.known_functions; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_record_has_one_name_and_its_own_ids():
    names = [spec.name for spec in ENV_FUNCTIONS]
    assert len(set(names)) == len(names)
    for env_id in [*CLASSIC, *MUJOCO, "Pusher-v4"]:
        assert sum(fnmatchcase(env_id, pattern) for spec in ENV_FUNCTIONS for pattern in spec.env_ids) == 1
    assert not any(fnmatchcase("phys2d/CartPole-v1", pattern) for spec in ENV_FUNCTIONS for pattern in spec.env_ids)


def test_ant_looks_at_positions_and_velocities_only():
    """The environment does not check its contact forces, which are the last 78 of 105 numbers."""
    termination = functions_of("Ant-v5", make("Ant-v5")).termination_fn
    assert termination is not None
    obs = th.full((105,), 0.5).repeat(2, 1)
    obs[0, 26], obs[1, 27] = float("nan"), float("nan")
    assert termination(obs, obs, obs).tolist() == [True, False]
