"""Players and masks of environments."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import MuZero
from tests.algorithms.muzero.agents import Count, small


class MaskedBy(Count):
    """A game whose masks are what a function of the step says."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def action_masks(self):
        return self.mask(self.t)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (lambda t: np.ones(2 if t == 2 else 3, bool), r"environment 1 has the shape \(2,\) after 6 real steps: give \(3,\)"),
        (lambda t: np.full(3, t != 2), "environment 1 allows no action after 6 real steps"),
        (lambda t: True, r"environment 1 has the shape \(\) after 0"),
    ],
)
def test_a_wrong_mask_of_one_of_several_environments_is_named(mask, words):
    """``stack expects each tensor to be equal size``, or ``row 1`` of nothing the user had made."""
    good = [lambda: MaskedBy(lambda t: np.ones(3, bool))]
    env = DummyVecEnv([*good, lambda: MaskedBy(mask), *good])
    with pytest.raises(ValueError, match=words):
        small(env).learn(30)


@pytest.mark.parametrize("order", [1, -1])
def test_masks_of_some_environments_only(order):
    """The masks of all environments were ignored."""
    envs = [Count, lambda: MaskedBy(lambda t: np.ones(3, bool))][::order]
    with pytest.raises(ValueError, match=r"1 of 2 environments have action_masks\(\), and the others do not"):
        small(DummyVecEnv(envs))


def test_masks_of_actions_that_are_sampled():
    env = MaskedBy(lambda t: np.ones(5, bool))
    env.action_space = spaces.MultiDiscrete([2, 3])
    with pytest.warns(UserWarning, match=r"action_masks\(\), which are not used: MuZero samples actions of MultiDiscrete"):
        small(env)


@pytest.mark.parametrize("turns", [(3, 3), ("x", "x"), (1, 2)])
def test_players_that_cannot_be_mapped(turns):
    def one(number):
        env = Count()
        env.turns = number
        return lambda: env

    with pytest.raises(ValueError, match=r"turns=.*: MuZero plays alone \(1\) or for two players \(2\), in all of them"):
        small(DummyVecEnv([one(number) for number in turns]))


@pytest.mark.parametrize("order", [1, -1])
def test_turns_of_some_environments_only(order):
    """All were played by one player, with wrong signs."""

    def two():
        env = Count()
        env.turns = 2
        return env

    with pytest.raises(ValueError, match=r"turns=.*in all of them"):
        small(DummyVecEnv([Count, two][::order]))


def test_masks_that_are_no_method():
    env = Count()
    env.action_masks = np.ones(3, bool)
    with pytest.raises(ValueError, match=r"action_masks of .* is a ndarray: make it a method"):
        small(env)


def test_steps_from_before_the_environment_had_masks_are_searched_with_all_actions(tmp_path):
    """Reanalysis took their masks, which nobody had written, for "no action is legal"."""
    first = small(DummyVecEnv([Count])).learn(30)
    first.save(tmp_path / "agent")
    first.save_replay_buffer(tmp_path / "buffer")
    env = MaskedBy(lambda t: np.array([True, True, False]))
    agent = MuZero.load(tmp_path / "agent", env=env, reanalyze_ratio=0.5)
    agent.load_replay_buffer(tmp_path / "buffer")
    updates = agent._n_updates
    agent.learn(20, reset_num_timesteps=False)
    assert agent._n_updates > updates
