"""``MBPO`` as a class: SAC's arguments in their order, and presets of the paper."""

import inspect
import re

import pytest
from stable_baselines3 import SAC

from sb3_mbrl import MBPO
from tests.helpers.agents import TINY


def test_arguments_are_those_of_sac_with_two_other_defaults():
    ours, theirs = inspect.signature(MBPO).parameters, inspect.signature(SAC).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name for name in theirs if ours[name].default != theirs[name].default} == {"learning_starts", "gradient_steps"}


def test_every_argument_is_explained_once():
    """In the order of the signature. The class's docstring is what a reader's editor shows."""
    explained = re.findall(r"^:param (\w+):", inspect.getdoc(MBPO), flags=re.M)
    assert explained == list(inspect.signature(MBPO).parameters)


def test_every_argument_reaches_the_agent():
    """One that the constructor forgot to hand on would be its default, silently."""
    given = {
        **TINY,
        "learning_rate": 1e-3,
        "learning_starts": 11,
        "tau": 0.1,
        "gamma": 0.9,
        "train_freq": 3,
        "gradient_steps": 2,
        "n_steps": 2,
        "target_update_interval": 4,
        "target_entropy": -2.0,
        "use_sde_at_warmup": True,
        "sde_sample_freq": 5,
        "stats_window_size": 7,
        "real_ratio": 0.25,
        "fit_freq": 33,
        "fit_kwargs": {"max_epochs": 1},
        "world_model": "pendulum",
    }
    agent = MBPO("MlpPolicy", "Pendulum-v1", **given)
    attributes = {"world_model": "world_model_class", "stats_window_size": "_stats_window_size"}
    for name, value in given.items():
        if name not in ("device", "train_freq", "policy_kwargs"):  # which SB3 converts, or adds to
            assert getattr(agent, attributes.get(name, name)) == value, name
    assert agent.policy_kwargs["net_arch"] == [16]
    assert agent.train_freq.frequency == 3


def test_a_run_is_named_after_the_class():
    assert inspect.signature(MBPO.learn).parameters["tb_log_name"].default == "MBPO"
    assert MBPO.model_free_class is SAC


def test_presets_are_arguments_of_the_constructor():
    preset = MBPO.preset("Hopper-v5")
    assert set(preset) <= set(inspect.signature(MBPO).parameters)
    assert preset["real_ratio"] == 0.05
    with pytest.raises(KeyError, match="Hopper-v5"):
        MBPO.preset("Hoper-v5")
