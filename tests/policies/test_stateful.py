"""``StatefulPolicy``: what ``predict`` makes of observations, states, episode starts and masks."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.policies import StatefulPolicy
from sb3_mbrl.spaces import ActionCodec


class Counting(StatefulPolicy):
    """A policy whose state is the number of observations seen in the episode, and whose action is a tenth of it."""

    def __init__(self, action_space=None):
        action_space = action_space or spaces.Box(np.float32([-2.0]), np.float32([6.0]))
        super().__init__(spaces.Box(-1, 1, (3,)), action_space)
        self._codec = ActionCodec(action_space)
        self.calls = []

    def decide(self, obs, state, is_first, *, deterministic=False, action_mask=None):
        self.calls.append({"training": self.training, "deterministic": deterministic, "mask": action_mask, "first": is_first})
        before = th.zeros(len(obs)) if state is None else th.where(is_first, 0.0, state)
        if isinstance(self.action_space, spaces.Discrete):
            return th.ones(len(obs), 1, dtype=th.long), before + 1
        return (before + 1)[:, None] / 10, before + 1


ONE, TWO = np.zeros(3, np.float32), np.zeros((2, 3), np.float32)


def test_actions_are_in_the_environments_units_and_keep_the_shape_of_the_observation():
    """0.1 of the half-width 4 around the centre 2."""
    policy = Counting()
    single, _ = policy.predict(ONE)
    assert single.shape == (1,)
    batch, _ = policy.predict(TWO)
    assert batch.shape == (2, 1)
    np.testing.assert_allclose([*single, *batch.flatten()], [2.4, 2.4, 2.4], rtol=1e-6)
    assert policy.action_space.contains(single)


def test_the_state_goes_from_call_to_call_and_is_forgotten_where_an_episode_starts():
    policy = Counting()
    _, state = policy.predict(TWO)
    _, state = policy.predict(TWO, state)
    assert state.tolist() == [2.0, 2.0]
    _, state = policy.predict(TWO, state, episode_start=np.array([False, True]))
    assert state.tolist() == [3.0, 1.0]
    _, state = policy.predict(TWO)
    assert state.tolist() == [1.0, 1.0], "without a state, an observation is the first of its episode"


def test_states_belong_to_the_caller():
    """Two callers in turn do not disturb each other."""
    policy, states = Counting(), {}
    for caller, calls in (("training", 2), ("evaluation", 1), ("training", 1)):
        for _ in range(calls):
            _, states[caller] = policy.predict(ONE, states.get(caller))
    assert {caller: state.tolist() for caller, state in states.items()} == {"training": [3.0], "evaluation": [1.0]}


def test_predict_is_in_evaluation_mode():
    policy = Counting()
    policy.set_training_mode(True)
    policy.predict(ONE, deterministic=True)
    assert policy.calls[-1]["training"] is False
    assert policy.calls[-1]["deterministic"] is True


def test_masks_get_a_row_for_a_single_observation():
    policy = Counting(spaces.Discrete(3))
    action, _ = policy.predict(ONE, action_masks=np.array([True, False, True]))
    assert action == 1
    assert policy.calls[-1]["mask"].tolist() == [[True, False, True]]
    policy.predict(TWO, action_masks=np.ones((2, 3), bool))
    assert policy.calls[-1]["mask"].shape == (2, 3)
    policy.predict(TWO)
    assert policy.calls[-1]["mask"] is None


def test_the_result_of_reset_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"given a tuple.*Give the first part: obs, info = env\.reset\(\)"):
        Counting().predict((ONE, {}))


def test_a_seed_restarts_the_private_stream_and_leaves_the_global_one():
    policy = Counting()
    before = th.get_rng_state()
    policy.set_seed(3)
    first = th.rand(4, generator=policy.generator)
    policy.set_seed(3)
    assert th.equal(th.rand(4, generator=policy.generator), first)
    policy.set_seed(None)
    assert not th.equal(th.rand(4, generator=policy.generator), first)
    assert th.equal(th.get_rng_state(), before)


def test_sb3s_own_way_to_ask_gets_scaled_actions():
    """``forward`` of SB3's policies calls ``_predict``, without a state."""
    policy = Counting()
    th.testing.assert_close(policy._predict(th.zeros(2, 3)), th.full((2, 1), 0.1))
    assert policy.calls[-1]["first"].all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_decided_from_observations_that_are_not_finite(value):
    """A planner chose an action from NaN, and a latent state stayed spoilt for the rest of the episode."""
    with pytest.raises(ValueError, match="The observation holds NaN or infinity"):
        Counting().predict(np.array([0.0, value, 0.0], np.float32))
