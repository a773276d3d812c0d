"""Known rewards and terminations agree with the environments themselves, step by step."""

from fnmatch import fnmatchcase

import pytest

from sb3_mbrl.envs.known_functions import ENV_FUNCTIONS
from tests.envs.functions import CLASSIC, MUJOCO, check, collect, functions_of, make

HIDDEN_REWARD = {"Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "Swimmer", "InvertedDoublePendulum"}


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


def test_every_record_has_one_name_and_its_own_ids():
    names = [spec.name for spec in ENV_FUNCTIONS]
    assert len(set(names)) == len(names)
    for env_id in [*CLASSIC, *MUJOCO, "Pusher-v4"]:
        assert sum(fnmatchcase(env_id, pattern) for spec in ENV_FUNCTIONS for pattern in spec.env_ids) == 1
    assert not any(fnmatchcase("phys2d/CartPole-v1", pattern) for spec in ENV_FUNCTIONS for pattern in spec.env_ids)
