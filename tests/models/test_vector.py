"""The base class of vector models: codecs, and what known functions are given."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import Prediction, UnsupportedSpace
from sb3_mbrl.models.vector import VectorModel

DICT = spaces.Dict(place=spaces.Box(-1, 1, (2,)), side=spaces.Discrete(3, start=5))
ACTIONS = spaces.Box(np.float32([-2.0]), np.float32([6.0]))


class Staying(VectorModel):
    """A model of an environment that does not move; every step pays 1 and never ends."""

    def step(self, state, action, *, deterministic=False, generator=None):
        obs = state["obs"]
        reward, terminated = self.known(obs, action, obs, th.ones(len(obs)), th.zeros(len(obs)))
        return Prediction(state, reward, terminated)


def observations():
    return {"place": th.tensor([[0.5, -0.5], [1.0, 0.0]]), "side": th.tensor([[5], [7]])}


def test_observations_are_encoded_and_come_back():
    model = Staying(DICT, ACTIONS, device="cpu")
    state = model.initial(observations())
    assert state["obs"].tolist() == [[0.5, -0.5, 1, 0, 0], [1, 0, 0, 0, 1]]
    back = model.decode(state)
    assert all(th.equal(back[key], value) for key, value in observations().items())


def test_inputs_are_observation_and_action_side_by_side():
    model = Staying(DICT, spaces.Discrete(3, start=1), device="cpu")
    inputs = model.inputs(model.initial(observations())["obs"], th.tensor([[1], [3]]))
    assert inputs.tolist() == [[0.5, -0.5, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0, 0, 1]]


def test_known_functions_see_observations_and_actions_in_the_environments_units():
    seen = []

    def reward_fn(obs, action, next_obs):
        seen.append((obs, action, next_obs))
        return obs["place"][:, 0] * 10

    model = Staying(DICT, ACTIONS, reward_fn=reward_fn, termination_fn=lambda o, a, n: n["side"][:, 0] == 7, device="cpu")
    prediction = model.step(model.initial(observations()), th.tensor([[-1.0], [0.5]]))
    assert prediction.reward.tolist() == [5.0, 10.0]
    assert prediction.terminated.tolist() == [0.0, 1.0]
    ((obs, action, next_obs),) = seen
    assert action.tolist() == [[-2.0], [4.0]]
    assert th.equal(obs["side"], observations()["side"])
    assert th.equal(next_obs["place"], observations()["place"])


def test_without_known_functions_predictions_stay():
    model = Staying(DICT, ACTIONS, device="cpu")
    prediction = model.step(model.initial(observations()), th.zeros(2, 1))
    assert prediction.reward.tolist() == [1.0, 1.0]
    assert prediction.terminated.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("observation_space", "action_space", "reason"),
    [
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), ACTIONS, "observation space: .* is an image"),
        (spaces.Text(3), ACTIONS, "observation space: Text is not one of Box"),
        (DICT, spaces.Dict(a=ACTIONS), "action space: SB3 has no Dict actions"),
    ],
)
def test_other_spaces_are_refused_with_the_reason(observation_space, action_space, reason):
    with pytest.raises(UnsupportedSpace, match=f"Staying does not take these spaces: {reason}"):
        Staying(observation_space, action_space, device="cpu")
