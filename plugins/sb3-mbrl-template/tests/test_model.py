"""The contract's checks, and what this model promises on top: it recovers a system that lies in its span."""

import math

import pytest
import torch as th
from gymnasium import spaces
from sb3_mbrl.contracts import FitBudget, Transitions, UnsupportedSpace
from sb3_mbrl.testing import parametrize_with_checks

import sb3_mbrl_template
from sb3_mbrl_template.model import FourierModel

OBS = spaces.Box(-10.0, 10.0, (2,))
ACTION = spaces.Box(-2.0, 2.0, (1,))


@parametrize_with_checks([FourierModel, *sb3_mbrl_template.sb3_mbrl_world_models()])
def test_contract(part, check):
    check(part)


class Rows:
    """``x' = (x0 + 0.1 x1 + noise, 0.9 x1 + 0.2 a)``, reward ``sin(x0) + a``, over at ``x0 > 1``."""

    def __init__(self, n: int, noise: float = 0.0, action_space: spaces.Space = ACTION) -> None:
        generator = th.Generator().manual_seed(1)
        obs = th.randn((n, 2), generator=generator)
        self.action = 2 * th.rand((n, 1), generator=generator) - 1
        a = self.action[:, 0]
        if isinstance(action_space, spaces.Discrete):
            self.action = th.randint(2, (n, 1), generator=generator)
            a = 2.0 * self.action[:, 0] - 1
        drift = 0.1 * obs[:, 1] + noise * th.randn(n, generator=generator)
        next_obs = th.stack([obs[:, 0] + drift, 0.9 * obs[:, 1] + 0.2 * a], dim=1)
        self.rows = Transitions(obs, self.action, next_obs, th.sin(obs[:, 0]) + a, (next_obs[:, 0] > 1).float())

    def __len__(self) -> int:
        return len(self.action)

    def transitions(self, n=None, *, generator=None) -> Transitions:
        assert n is None
        return self.rows


def fitted(data: Rows, action_space: spaces.Space = ACTION, **kwargs):
    model = FourierModel(OBS, action_space, device="cpu", **kwargs)
    return model, model.fit(data, generator=th.Generator().manual_seed(0))


@pytest.mark.parametrize("action_space", [ACTION, spaces.Discrete(2)], ids=["box", "discrete"])
def test_learns_dynamics_reward_and_termination(action_space):
    model, metrics = fitted(Rows(1000, action_space=action_space), action_space)
    assert (metrics["rows"], metrics["holdout_rows"]) == (1000, 200)
    assert metrics["holdout_mse"] < 1e-3
    test = Rows(300, action_space=action_space).rows
    prediction = model.step(model.initial(test.obs), test.action, deterministic=True)
    assert (prediction.state - test.next_obs).abs().max() < 0.1
    assert (prediction.reward - test.reward).abs().mean() < 0.05
    assert ((prediction.terminated > 0.5) == (test.terminated > 0.5)).float().mean() > 0.95


def test_noise_is_that_of_the_data():
    model, _ = fitted(Rows(4000, noise=0.3), n_features=16)
    state, action = th.zeros(20_000, 2), th.zeros(20_000, 1)
    sample = model.step(state, action, generator=th.Generator().manual_seed(0)).state
    assert sample.std(0)[0] == pytest.approx(0.3, rel=0.1)
    assert sample.std(0)[1] < 0.02


def test_weights_solve_the_penalised_least_squares_problem():
    """At the solution the gradient of ``|F w - Y|^2 + ridge |w|^2`` vanishes."""
    data = Rows(200, noise=0.5)
    model = FourierModel(OBS, ACTION, device="cpu", n_features=10, ridge=3.0)
    model.fit(data, FitBudget(holdout_ratio=0.0))
    features = model._features(th.cat([data.rows.obs, data.rows.action], dim=1))
    targets = th.cat([data.rows.next_obs - data.rows.obs, data.rows.reward[:, None]], dim=1)
    residual = (targets - model.target_mean) / model.target_std - features @ model.weights
    assert th.allclose(features.T @ residual, 3.0 * model.weights, atol=1e-2)
    assert th.allclose(model.noise_std, residual.square().mean(0).sqrt(), rtol=1e-3)


def test_known_functions_replace_the_learned_ones():
    """They see members of the spaces, and actions in the environment's units."""
    model, _ = fitted(
        Rows(500),
        reward_fn=lambda obs, action, next_obs: action[:, 0],
        termination_fn=lambda obs, action, next_obs: next_obs[:, 0] > 100,
    )
    prediction = model.step(th.ones(3, 2), th.tensor([[-1.0], [0.0], [1.0]]))
    assert prediction.reward.tolist() == [-2.0, 0.0, 2.0]
    assert prediction.terminated.tolist() == [0.0, 0.0, 0.0]


def test_no_episode_has_ended_so_none_is_imagined_to():
    data = Rows(100)
    data.rows = data.rows._replace(terminated=th.zeros(100))
    model, _ = fitted(data)
    assert model.step(th.full((5, 2), 1e3), th.zeros(5, 1)).terminated.tolist() == [0.0] * 5


def test_states_stay_in_the_space():
    model, _ = fitted(Rows(100))
    assert model.step(th.full((5, 2), 10.0), th.ones(5, 1)).state.max() <= 10.0


def test_building_leaves_torchs_random_stream_alone():
    before = th.get_rng_state()
    model = FourierModel(OBS, ACTION)
    assert th.equal(th.get_rng_state(), before)
    assert model.frequencies.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "reason"),
    [
        (spaces.Discrete(3), ACTION, "it takes flat Box observations only, not Discrete"),
        (OBS, spaces.MultiBinary(2), "it takes Box and Discrete actions only, not MultiBinary"),
    ],
)
def test_refuses_other_spaces_in_words(observation_space, action_space, reason):
    assert sb3_mbrl_template.supports(observation_space, action_space).startswith(reason)
    with pytest.raises(UnsupportedSpace, match=reason):
        FourierModel(observation_space, action_space)


@pytest.mark.parametrize("wrong", [{"n_features": 0}, {"ridge": 0.0}, {"lengthscale": -1.0}, {"max_rows": 0}])
def test_refuses_senseless_numbers(wrong):
    with pytest.raises(ValueError, match="all must be positive"):
        FourierModel(OBS, ACTION, **wrong)
