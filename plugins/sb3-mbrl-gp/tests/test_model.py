"""The contract's checks, and what Gaussian processes promise: the textbook's posterior, and known systems from few rows."""

import pytest
import torch as th
from gymnasium import spaces
from sb3_mbrl.contracts import FitBudget, Transitions, UnsupportedSpace
from sb3_mbrl.testing import parametrize_with_checks

import sb3_mbrl_gp
from sb3_mbrl_gp.model import GPModel

OBS = spaces.Box(-10.0, 10.0, (2,))
ACTION = spaces.Box(-2.0, 2.0, (1,))


@parametrize_with_checks(sb3_mbrl_gp.sb3_mbrl_world_models())
def test_contract(part, check):
    check(part)


class Rows:
    """
    A pendulum-like system: ``x' = (x0 + 0.1 x1, x1 + 0.2 sin(x0) + 0.2 a + noise)``, reward ``cos(x0)``, over at ``x0 > 1.5``.
    """

    def __init__(self, n: int, noise: float = 0.0, seed: int = 1) -> None:
        generator = th.Generator().manual_seed(seed)
        obs = th.randn((n, 2), generator=generator)
        self.action = 2 * th.rand((n, 1), generator=generator) - 1
        kick = 0.2 * th.sin(obs[:, 0]) + 0.2 * self.action[:, 0] + noise * th.randn(n, generator=generator)
        next_obs = th.stack([obs[:, 0] + 0.1 * obs[:, 1], obs[:, 1] + kick], dim=1)
        self.rows = Transitions(obs, self.action, next_obs, th.cos(obs[:, 0]), (next_obs[:, 0] > 1.5).float())

    def __len__(self) -> int:
        return len(self.action)

    def transitions(self, n=None, *, generator=None) -> Transitions:
        return self.rows


def fitted(data: Rows, **kwargs) -> GPModel:
    model = GPModel(OBS, ACTION, device="cpu", **kwargs)
    model.fit(data, generator=th.Generator().manual_seed(0))
    return model


def test_a_hundred_rows_are_enough():
    model, test = fitted(Rows(100)), Rows(200, seed=2).rows
    near = test.obs.abs().max(1).values < 1.5
    prediction = model.step(model.initial(test.obs), test.action, deterministic=True)
    assert (prediction.state - test.next_obs)[near].abs().max() < 0.02
    assert (prediction.reward - test.reward)[near].abs().max() < 0.05


def test_rows_that_lie_close_together():
    """A pendulum that is held up: in single precision their covariance had no factor, and training ended there."""
    data = Rows(450)
    rows = data.rows
    obs, action = rows.obs.clone(), rows.action.clone()
    obs[150:] *= 1e-4
    action[150:] *= 1e-4
    kick = 0.2 * th.sin(obs[:, 0]) + 0.2 * action[:, 0]
    next_obs = th.stack([obs[:, 0] + 0.1 * obs[:, 1], obs[:, 1] + kick], dim=1)
    data.rows = rows._replace(obs=obs, action=action, next_obs=next_obs, reward=th.cos(obs[:, 0]), terminated=th.zeros(450))
    model = fitted(data, steps=200)
    assert model.step(model.initial(obs[:5]), action[:5]).state.isfinite().all()
    assert all(parameter.dtype == th.float32 for parameter in model.parameters())


def test_the_posterior_is_the_textbooks():
    """Rasmussen and Williams, equations 2.25 and 2.26, by hand for one process."""
    model = fitted(Rows(20), steps=10)
    x, y = model.stored["x"].double(), model.stored["y"][0].double()
    kernel = model.prior.covar_module
    scale, size = kernel.base_kernel.lengthscale[0].double(), kernel.outputscale[0].double()

    def k(a, b):
        return size * th.exp(-0.5 * ((a / scale)[:, None] - (b / scale)[None]).square().sum(-1))

    noise, constant = model.likelihood.noise[0, 0].double() + 1e-6, model.prior.mean_module.constant[0].double()
    new = th.tensor([[0.3, -0.2, 0.5]], dtype=th.float64)
    solve = th.linalg.solve(k(x, x) + noise * th.eye(20, dtype=th.float64), k(x, new))
    mean, variance = constant + solve.T @ (y - constant), k(new, new) - k(new, x) @ solve + noise
    raw = model.input_scale.inverse(new[0].float())
    found_mean, found_variance = model.posterior(raw[None, :2], raw[None, 2:])
    std = model.target_scale.std[0]
    assert float(found_mean[0, 0]) == pytest.approx(float(model.target_scale.mean[0] + std * mean), rel=1e-3)
    assert float(found_variance[0, 0]) == pytest.approx(float(std**2 * variance), rel=1e-2)


def test_far_from_the_data_it_knows_that_it_does_not_know():
    model = fitted(Rows(100))
    _, near = model.posterior(th.zeros(1, 2), th.zeros(1, 1))
    _, far = model.posterior(th.full((1, 2), 9.0), th.zeros(1, 1))
    assert far[0, 1] > 20 * near[0, 1]


def test_the_noise_is_that_of_the_data():
    model = fitted(Rows(300, noise=0.3), steps=100)
    sample = model.step(th.zeros(20_000, 2), th.zeros(20_000, 1), generator=th.Generator().manual_seed(0)).state
    assert float(sample[:, 1].std()) == pytest.approx(0.3, rel=0.2)
    assert float(sample[:, 0].std()) < 0.05


def test_no_episode_has_ended_so_none_is_imagined_to():
    data = Rows(50)
    data.rows = data.rows._replace(terminated=th.zeros(50))
    assert fitted(data).step(th.full((5, 2), 9.0), th.zeros(5, 1)).terminated.tolist() == [0.0] * 5


def test_only_so_many_rows_are_stored():
    model = fitted(Rows(80), max_rows=30)
    assert model.stored["x"].shape == (30, 3)


def test_an_interrupted_fit_changes_nothing():
    model, stop = fitted(Rows(50)), KeyboardInterrupt()
    state, action = th.zeros(3, 2), th.zeros(3, 1)
    before = model.step(state, action, deterministic=True)

    def interrupt(what):
        raise stop

    model.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.fit(Rows(70, seed=5))
    assert th.equal(model.step(state, action, deterministic=True).state, before.state)


def test_the_budget_limits_the_steps():
    model = GPModel(OBS, ACTION, device="cpu")
    told = []
    model.on_progress = told.append
    model.fit(Rows(20), FitBudget(max_batches=3))
    assert told == ["fit 1/3", "fit 2/3", "fit 3/3"]


@pytest.mark.parametrize(
    ("observation_space", "action_space", "reason"),
    [
        (spaces.Discrete(3), ACTION, "it takes flat Box observations only, not Discrete"),
        (OBS, spaces.MultiBinary(2), "it takes Box and Discrete actions only, not MultiBinary"),
    ],
)
def test_refuses_other_spaces_in_words(observation_space, action_space, reason):
    with pytest.raises(UnsupportedSpace, match=reason):
        GPModel(observation_space, action_space)


@pytest.mark.parametrize(
    "wrong",
    [{"max_rows": 0}, {"max_rows": True}, {"steps": -1}, {"steps": 1.5}, {"learning_rate": 0.0}, {"learning_rate": None}],
)
def test_refuses_senseless_numbers(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: give a"):
        GPModel(OBS, ACTION, **wrong)


def test_whole_numbers_of_a_settings_file():
    """1e3 is a float; it used to fail after the random steps."""
    model = GPModel(OBS, ACTION, max_rows=20.0, steps=2.0, device="cpu")
    assert model.fit(Rows(30), generator=th.Generator().manual_seed(0))["rows"] == 20


def test_what_never_varied_has_no_noise_and_small_numbers_have_their_own():
    """Constants were drawn with a noise of 8 %, numbers of 1e-7 with 1e5 times their size."""
    data = Rows(60)

    def stretched(obs):
        return th.stack([obs[:, 0], th.full_like(obs[:, 0], 5.0), 1e-7 * obs[:, 1]], 1)

    data.rows = data.rows._replace(obs=stretched(data.rows.obs), next_obs=stretched(data.rows.next_obs))
    model = GPModel(spaces.Box(-10.0, 10.0, (3,)), ACTION, device="cpu")
    model.fit(data, generator=th.Generator().manual_seed(0))
    start = th.tensor([[9.0, 5.0, 9e-7]]).repeat(200, 1)
    drawn = model.step(start, th.full((200, 1), 0.5), generator=th.Generator().manual_seed(0)).state
    assert (drawn[:, 1] == 5.0).all()
    assert drawn[:, 2].std() < 1e-6


def test_second_derivatives():
    """iLQR and others ask for them by torch.func; th.cdist has none."""
    model = GPModel(OBS, ACTION, device="cpu")
    model.fit(Rows(30), generator=th.Generator().manual_seed(0))

    def reward(action):
        return model.step(th.tensor([[0.3, 0.1]]), action[None], deterministic=True).reward[0]

    action, h = th.tensor([0.4]), 0.05
    by_differences = (reward(action + h) - 2 * reward(action) + reward(action - h)) / h**2
    found = th.vmap(th.func.hessian(reward))(action[None])[0, 0, 0]
    th.testing.assert_close(found, by_differences, rtol=0.2, atol=0.02)
