"""``MLPModel``: learning, and options that do not fit together."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.buffers import ReplayData
from sb3_mbrl.contracts import FitBudget, Transitions, UnsupportedSpace
from sb3_mbrl.models import mlp
from sb3_mbrl.models.ensemble import EnsembleModel
from sb3_mbrl.models.mlp import FitRows, MLPModel, layer_weight_decay
from tests.models.data import ACT, OBS, SMALL, linear_data


@pytest.mark.parametrize("target", ["delta", "next"])
@pytest.mark.parametrize("probabilistic", [True, False])
def test_mlp_learns_transition_reward_and_termination(target, probabilistic, generator):
    th.manual_seed(0)
    model = MLPModel(OBS, ACT, target=target, probabilistic=probabilistic, learning_rate=3e-3, **SMALL)
    model.fit(linear_data(), FitBudget(max_epochs=120, patience=20), generator=generator)
    rows = linear_data(300, seed=1).transitions()
    step = model.step(model.initial(rows.obs), rows.action, deterministic=True)
    assert (model.decode(step.state) - rows.next_obs).abs().mean() < 0.06
    assert (step.reward - rows.reward).abs().mean() < 0.1
    assert ((step.terminated > 0.5) == (rows.terminated > 0.5)).float().mean() > 0.96


def test_weight_decay_is_the_l2_penalty_of_the_paper():
    """grad = decay * w, on weights only: Adam's coupled weight_decay."""
    assert layer_weight_decay(None, 5) == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    assert layer_weight_decay(0.5, 3) == [0.5, 0.5, 0.5]
    model = EnsembleModel(OBS, ACT, hidden=[8] * 4)
    groups = model.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4, 0.0, 0.0]
    with pytest.raises(ValueError, match="weight_decay has 2 entries, but the network has 3 linear layers"):
        MLPModel(OBS, ACT, hidden=[8, 8], weight_decay=[1e-4, 1e-4])
    for wrong in (float("nan"), -1.0, [1e-4, float("inf"), 0.0]):
        with pytest.raises(ValueError, match=r"weight_decay=.*: give finite numbers from 0 on"):
            MLPModel(OBS, ACT, hidden=[8, 8], weight_decay=wrong)


def test_known_functions_replace_the_heads_and_get_the_environments_units():
    seen = {}

    def reward_fn(obs, action, next_obs):
        seen["action"] = action
        return obs[:, 0] + action[:, 0]

    def termination_fn(obs, action, next_obs):
        return next_obs[:, 0] > 0

    model = MLPModel(OBS, ACT, reward_fn=reward_fn, termination_fn=termination_fn, **SMALL)
    assert model.heads.out_features == 2 * 2
    step = model.step(model.initial(th.tensor([[1.0, 0.0], [-1.0, 0.0]])), th.tensor([[1.0], [-0.5]]), deterministic=True)
    assert seen["action"].tolist() == [[3.0], [-1.5]]
    assert step.reward.tolist() == [4.0, -2.5]
    assert step.terminated.tolist() == [1.0, 0.0]


def test_imagined_observations_stay_in_bounds():
    model = MLPModel(OBS, ACT, **SMALL)
    with th.no_grad():
        model.network.layers[-1].bias.fill_(1e6)
    state = model.step(model.initial(th.zeros(4, 2)), th.zeros(4, 1), deterministic=True).state
    assert (model.decode(state) == 20).all()


def test_a_discrete_world_is_learned_as_a_classification(generator):
    """A ring of five cells; the action moves left or right, and one time in four it does nothing."""
    obs_space, act_space = spaces.Discrete(5), spaces.Discrete(2)
    rng, buffer = np.random.default_rng(0), ReplayBuffer(3000, obs_space, act_space, device="cpu")
    for _ in range(3000):
        cell, action = rng.integers(5), rng.integers(2)
        after = (cell + (2 * action - 1) * (rng.random() < 0.75)) % 5
        buffer.add(np.array([cell]), np.array([after]), np.array([action]), np.array([1.0 * (after == 0)]), np.zeros(1), [{}])
    th.manual_seed(0)
    model = MLPModel(obs_space, act_space, learning_rate=3e-3, **SMALL)
    model.fit(ReplayData(buffer), FitBudget(max_epochs=60, patience=20), generator=generator)
    start = th.full((4000, 1), 2)
    after = model.decode(model.step(model.initial(start), th.ones(4000, 1).long(), generator=generator).state)
    shares = th.bincount(after.flatten(), minlength=5) / 4000
    th.testing.assert_close(shares, th.tensor([0.0, 0.0, 0.25, 0.75, 0.0]), rtol=0, atol=0.06)


def test_a_second_fit_goes_on_from_the_first(generator):
    model = MLPModel(OBS, ACT, **SMALL)
    data = linear_data(600)
    first = model.fit(data, FitBudget(max_epochs=10), generator=generator)["holdout_error"]
    second = model.fit(data, FitBudget(max_epochs=10), generator=generator)["holdout_error"]
    assert second < first
    assert model.n_fits == 2


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 <= elites <= members"):
        EnsembleModel(OBS, ACT, members=3, elites=4)
    with pytest.raises(ValueError, match="choose 'delta' or 'next'"):
        MLPModel(OBS, ACT, target="residual")
    with pytest.raises(UnsupportedSpace, match=r"EnsembleModel does not take these spaces: observation space: .* is an image"):
        EnsembleModel(spaces.Box(0, 255, (8, 8, 3), np.uint8), ACT)


def test_categories_that_are_encoded_batch_by_batch_are_the_same(monkeypatch, generator):
    """One-hot vectors of all rows at once took hundreds of megabytes for a few thousand rows of many categories."""
    space = spaces.Dict(shelf=spaces.Discrete(40), x=spaces.Box(-5, 5, (2,)))
    model = MLPModel(space, spaces.Discrete(3), **SMALL)
    n = 300
    obs, next_obs = (
        {"shelf": th.randint(40, (n, 1), generator=generator), "x": th.randn(n, 2, generator=generator)} for _ in range(2)
    )
    action, reward = th.randint(3, (n, 1), generator=generator), th.randn(n, generator=generator)
    rows = Transitions(obs, action, next_obs, reward, (reward > 1).float())
    at_once = FitRows(model, rows, learn_scales=True)
    scales = [value.clone() for value in model.state_dict().values()]
    monkeypatch.setattr(mlp, "LARGE", 100)
    by_batch = FitRows(model, rows, learn_scales=True)
    assert by_batch.encoded is None
    for one, other in zip(scales, model.state_dict().values(), strict=True):
        th.testing.assert_close(one, other)
    index = th.randint(n, (1, 16), generator=generator)
    (inputs, targets), (other_inputs, other_targets) = at_once.batch(index), by_batch.batch(index)
    th.testing.assert_close(inputs, other_inputs)
    for one, other in zip(targets, other_targets, strict=True):
        th.testing.assert_close(one, other)
    th.testing.assert_close(model._holdout_scores(at_once), model._holdout_scores(by_batch))
