"""``StatefulActing``: the policy state of training, from step to step."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import PETS
from sb3_mbrl.agent.stateful import StatefulActing
from tests.helpers.agents import Counter


class Adding:
    """A ``decide`` that adds up observations within an episode, and acts by the sum."""

    def __init__(self):
        self.calls = []

    def __call__(self, obs, state, is_first, deterministic):
        self.calls.append((is_first.tolist(), deterministic))
        total = obs[:, 0] if state is None else th.where(is_first, obs[:, 0], state["total"] + obs[:, 0])
        action = total[:, None] / 100
        return action, {"total": total, "action": action}


def acting(n_envs=2):
    return StatefulActing(Adding(), n_envs, th.device("cpu"), "Tested")


def column(*values):
    return th.tensor(values, dtype=th.float32)[:, None]


def test_the_state_of_every_environment_is_continued_within_its_episode():
    acts = acting()
    assert acts.act(column(1, 10), False).flatten().tolist() == pytest.approx([0.01, 0.1])
    acts.after_step(np.zeros((2, 1), np.float32), np.array([False, True]))
    acts.act(column(2, 20), False)
    assert acts.state["total"].tolist() == [3.0, 20.0], "the second environment begins an episode"
    assert acts.decide.calls == [([True, True], False), ([False, True], False)]


def test_the_action_that_was_taken_replaces_the_one_that_was_chosen():
    """SB3 adds noise to what was chosen, and the next decision follows from what was done."""
    acts = acting()
    acts.act(column(1, 10), True)
    acts.after_step(np.array([[0.5], [-0.5]], np.float32), np.array([False, False]))
    assert acts.state["action"].tolist() == [[0.5], [-0.5]]
    assert acts.decide.calls[-1][1] is True, "deterministic is handed on"


def test_a_step_without_a_decision_is_noted_too():
    """Random actions before ``learning_starts`` come without a policy state."""
    acts = acting()
    acts.after_step(np.zeros((2, 1), np.float32), np.array([True, False]))
    assert acts.state is None
    assert acts.is_first.tolist() == [True, False]


def test_forgetting_begins_new_episodes_of_another_number():
    acts = acting()
    acts.act(column(1, 10), False)
    acts.after_step(np.zeros((2, 1), np.float32), np.array([False, False]))
    acts.forget(3)
    assert acts.state is None
    assert acts.is_first.tolist() == [True] * 3


def test_collecting_ends_with_an_exception_too():
    acts, seen = acting(), []

    def fail():
        seen.append(acts.collecting)
        raise RuntimeError

    with pytest.raises(RuntimeError), acts.collect():
        fail()
    assert (seen, acts.collecting) == ([True], False)


def test_observations_of_vec_normalize_are_turned_back():
    env = VecNormalize(DummyVecEnv([Counter]))
    env.obs_rms.mean, env.obs_rms.var = np.array([3.0]), np.array([4.0])
    raw = acting(1).raw(env.normalize_obs(np.array([[7.0]], np.float32)), env)
    np.testing.assert_allclose(raw, [[7.0]], rtol=1e-5)


def test_missing_statistics_are_warned_of_once(recwarn):
    acts, obs = acting(1), np.ones((1, 1), np.float32)
    assert acts.raw(obs, None) is obs
    assert not recwarn.list, "nothing was normalised, so nothing is missing"
    acts.normalised = True
    with pytest.warns(UserWarning, match="This Tested was trained behind VecNormalize, and has none now"):
        assert acts.raw(obs, None) is obs
    recwarn.clear()
    acts.raw(obs, None)
    assert not recwarn.list


def test_a_saved_policy_state_is_continued_by_as_many_environments():
    acts = acting()
    acts.act(column(1, 10), False)
    acts.after_step(np.zeros((2, 1), np.float32), np.array([False, True]))
    acts.normalised = True
    loaded, more = acting(), acting(3)
    for one in (loaded, more):
        one.load_state_dict(acts.state_dict())
        assert one.normalised
    loaded.act(column(2, 20), False)
    assert loaded.state["total"].tolist() == [3.0, 20.0]
    assert more.state is None, "the state is that of another number of environments"
    assert more.is_first.tolist() == [True] * 3


SMALL = {
    "learning_starts": 60,
    "world_model_kwargs": {"members": 2, "elites": 1, "hidden": [16]},
    "fit_kwargs": {"max_batches": 5},
    "planner_kwargs": {"horizon": 3, "population": 8, "iterations": 1},
    "seed": 0,
    "device": "cpu",
}


def test_what_was_done_is_remembered_with_its_noise():
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    trained = PETS("MlpPolicy", "Pendulum-v1", action_noise=noise, **SMALL).learn(70)
    newest = (trained.replay_buffer.pos - 1) % trained.replay_buffer.buffer_size
    np.testing.assert_allclose(trained.acting.state["action"], trained.replay_buffer.actions[newest], atol=1e-6)


def test_a_policy_state_of_another_number_of_environments():
    acts = acting()
    state = {"normalised": False, "is_first": np.zeros(2, bool), "state": {"action": th.zeros(3, 1)}}
    with pytest.raises(ValueError, match="the policy state is not of 2 environments"):
        acts.load_state_dict(state)
