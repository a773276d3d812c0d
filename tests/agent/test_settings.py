"""Settings that Stable-Baselines3 takes as they are: each ended training in the middle, or with a raw error of Python."""

import math

import pytest
from stable_baselines3 import DQN, SAC, TD3

from sb3_mbrl import MBPO, DreamerV3, DynaQ, MuZero, model_based
from tests.helpers.agents import quick


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"target_entropy": math.nan}, "target_entropy=nan: give 'auto' or a number"),
        ({"target_entropy": "x"}, "target_entropy='x': give 'auto' or a number"),
        ({"ent_coef": "abc"}, "ent_coef='abc': give a number, 'auto', or 'auto_' and a number above 0"),
        ({"ent_coef": "auto_x"}, "ent_coef='auto_x'"),
        ({"ent_coef": "auto_-1"}, "ent_coef='auto_-1'"),
        ({"ent_coef": "auto_inf"}, "ent_coef='auto_inf'"),
        ({"ent_coef": None}, "ent_coef=None"),
        ({"replay_buffer_class": 3}, "replay_buffer_class=3: give ReplayBuffer"),
        ({"replay_buffer_class": int}, "replay_buffer_class=<class 'int'>: give ReplayBuffer"),
        ({"replay_buffer_kwargs": 3}, "replay_buffer_kwargs=3: give a dictionary"),
        ({"policy_kwargs": 3}, "policy_kwargs=3: give a dictionary"),
        ({"policy_kwargs": "x"}, "policy_kwargs='x': give a dictionary"),
        ({"world_model": int}, "world_model=<class 'int'> is no world model: it is not derived from WorldModel"),
        ({"imagination": int}, "imagination=<class 'int'> is no imagination"),
        ({"gradient_steps": 1.5}, "gradient_steps=1.5: give the number of updates"),
        ({"learning_starts": math.nan}, "learning_starts=nan: give the number of real steps"),
        ({"buffer_size": 100.0}, "buffer_size=100.0: give the number of transitions"),
        ({"n_steps": "x"}, "n_steps='x': give the number of steps"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"tensorboard_log": 3}, "tensorboard_log=3: give the path"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_are_refused_at_construction(wrong, words):
    with pytest.raises((ValueError, TypeError), match=words):
        quick(**wrong)


@pytest.mark.parametrize("kind", [DynaQ, MuZero, DreamerV3])
@pytest.mark.parametrize("wrong", [{"policy_kwargs": 3}, {"replay_buffer_class": 3}], ids=str)
def test_every_class_refuses_them(kind, wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))}=3: give"):
        kind("QTablePolicy" if kind is DynaQ else "MlpPolicy", "CliffWalking-v1", **wrong)


@pytest.mark.parametrize("policy", [3, int])
def test_a_policy_that_is_none(policy):
    with pytest.raises(TypeError, match=r"policy=.*: give the name of a policy"):
        MBPO(policy, "Pendulum-v1")


def test_no_environment():
    with pytest.raises(ValueError, match="MBPO was given env=None: give an environment"):
        MBPO("MlpPolicy", None)


@pytest.mark.parametrize("wrong", [{"policy_delay": 0}, {"target_policy_noise": math.nan}, {"target_noise_clip": -1}], ids=str)
def test_settings_of_td3(wrong):
    """A delay of 0 was a ZeroDivisionError, and noise of NaN were weights of NaN, both in the first update."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        model_based(TD3)("MlpPolicy", "Pendulum-v1", **wrong)


def test_whole_floats_of_settings_files_are_whole_numbers():
    """A batch_size of 16.0 passed construction, and ended learn in the first update."""
    agent = quick(batch_size=16.0, gradient_steps=2.0)
    assert (type(agent.batch_size), type(agent.gradient_steps)) == (int, int)


@pytest.mark.parametrize("setting", [{"ent_coef": "0.1"}, {"ent_coef": "auto_0.5"}, {"target_entropy": -2}], ids=str)
def test_what_sb3_documents_is_taken(setting):
    assert quick(**setting).world_model is not None


def test_without_a_model_the_class_is_that_of_sb3():
    given = {"target_entropy": math.nan, "learning_starts": math.nan, "device": "cpu"}
    assert math.isnan(MBPO("MlpPolicy", "Pendulum-v1", world_model=None, **given).target_entropy)
    assert math.isnan(SAC("MlpPolicy", "Pendulum-v1", **given).target_entropy)
    assert DQN("MlpPolicy", "CartPole-v1", gradient_steps=1.5, device="cpu").gradient_steps == 1.5
