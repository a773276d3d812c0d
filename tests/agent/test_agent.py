"""Settings of an agent that contradict each other or make no sense."""

import pytest

from sb3_mbrl import Dyna
from tests.helpers.agents import learned, quick
from tests.helpers.dreamers import small


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"real_ratio": -0.1}, "real_ratio=-0.1: give the share of real rows"),
        ({"real_ratio": "0.5"}, "real_ratio='0.5'"),
        ({"fit_freq": "250"}, "fit_freq='250'"),
        ({"fit_freq": None}, "fit_freq=None"),
        ({"fit_freq": -1}, "fit_freq=-1: give the real environment steps between two fits"),
        ({"reward_fn": "known"}, "reward_fn='known': give a function, 'auto'"),
        ({"imagination_kwargs": {"horizon": "5"}}, "horizon='5': give a whole number"),
        ({"imagination_kwargs": {"observation": "features"}}, "policy acts on observations"),
        ({"world_model_kwargs": {"members": 2, "elites": 3}}, "elites=3 of members=2: give 1 <= elites <= members"),
        ({"world_model_kwargs": {"hidden": [8], "weight_decay": [0.1]}}, "weight_decay has 1 entries, but the network has 2"),
        ({"world_model_kwargs": {"target": "both"}}, "target='both': choose 'delta' or 'next'"),
        ({"fit_kwargs": {"holdout_ratio": 1.0}}, "holdout_ratio=1.0: nothing would be left to learn from"),
        ({"world_model_kwargs": {"hidden": 64}}, "hidden=64: give the units of each hidden layer"),
        ({"world_model_kwargs": {"hidden": [0]}}, r"hidden=\[0\]: give the units"),
        ({"world_model_kwargs": {"reward_fn": print}}, "give reward_fn to MBPO"),
        ({"world_model_kwargs": {"device": "cpu"}}, "give device to MBPO"),
        ({"imagination_kwargs": {"starts_per_step": float("nan")}}, "starts_per_step=nan: give a number above 0"),
        ({"imagination_kwargs": {"starts_per_step": float("inf")}}, "starts_per_step=inf: give a number above 0"),
        ({"imagination_kwargs": {"max_age": float("inf")}}, "max_age=inf: give a whole number"),
        ({"imagination_kwargs": {"freq": 2.5}}, "freq=2.5: give a whole number"),
    ],
)
def test_options_that_contradict_each_other(wrong, words):
    with pytest.raises(ValueError, match=words):
        quick(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"real_ratio": 1.5}, "real_ratio=1.5"),
        ({"fit_freq": 0}, "fit_freq=0"),
        ({"fit_kwargs": {"max_batches": 0}}, "max_batches=0"),
        ({"termination_fn": "never"}, "termination_fn='never': give a function, 'auto'"),
        ({"imagination_kwargs": {"freq": 100, "max_age": 10}}, "max_age=10 is shorter than freq=100"),
        ({"imagination_kwargs": {"horizon": [5, 1, 1, 3]}}, "end_step not before start_step"),
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        learned(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1 on"),
        ({"batch_size": -3}, "batch_size=-3"),
        ({"buffer_size": 0}, "buffer_size=0"),
        ({"gamma": float("nan")}, "gamma=nan: give a number from 0 up to 1"),
        ({"tau": -1}, "tau=-1"),
        ({"train_freq": 0}, r"train_freq=TrainFreq\(frequency=0"),
        ({"target_update_interval": 0}, "target_update_interval=0"),
        ({"learning_rate": lambda progress: progress - 0.5}, "learning_rate=-0.5: give a number from 0"),
        ({"action_noise": 3}, "action_noise=3: give an ActionNoise"),
    ],
)
def test_settings_of_sb3_that_end_training_in_the_middle(wrong, words):
    """NaN weights, a ZeroDivisionError, an action noise without ``reset``: all after the run had begun."""
    with pytest.raises((ValueError, TypeError), match=words):
        quick(**wrong)


def test_a_learning_rate_of_nan_is_not_blamed_on_the_environment():
    """DreamerV3 gave the environment an action of NaN, and said that the environment had returned NaN."""
    with pytest.raises(ValueError, match="learning_rate=nan: give a number from 0"):
        small(learning_rate=float("nan"))


def test_a_gradient_norm_of_nan():
    """All weights of Dyna's policy were NaN after the first update."""
    with pytest.raises(ValueError, match="max_grad_norm=nan: give a number above 0"):
        Dyna("MlpPolicy", "CartPole-v1", max_grad_norm=float("nan"), device="cpu")
