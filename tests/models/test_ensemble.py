"""The ensemble of networks."""

import pytest
import torch as th

from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.models.ensemble import EnsembleModel
from tests.models.data import ACT, OBS, SMALL, linear_data


def test_ensemble_learns_the_noise(generator):
    th.manual_seed(0)
    model = EnsembleModel(OBS, ACT, members=3, elites=2, **SMALL)
    model.fit(linear_data(noise=0.3), FitBudget(max_epochs=40), generator=generator)
    rows = linear_data(300, seed=1).transitions()
    members = model.members(model.initial(rows.obs), rows.action)
    assert members.mean.shape == (2, 300, 2)
    assert float(members.variance.mean().sqrt().detach()) == pytest.approx(0.3, rel=0.15)


def test_elites_are_the_members_with_the_lowest_holdout_error(generator):
    model = EnsembleModel(OBS, ACT, members=4, elites=2, **SMALL)
    model.fit(linear_data(400), FitBudget(max_epochs=3), generator=generator)
    order = sorted(range(4), key=lambda e: model.holdout_scores[e])
    assert model.elites == order[:2]
    with th.no_grad():
        for layer in model.network.layers:
            layer.weight[order[2:]] = float("nan")
    state = model.initial(th.zeros(500, 2))
    assert model.step(state, th.zeros(500, 1), generator=generator).reward.isfinite().all()


def test_every_row_draws_its_own_member(generator):
    model = EnsembleModel(OBS, ACT, members=3, elites=3, **SMALL)
    with th.no_grad():
        model.heads.max_logvar.fill_(-30.0)
        model.heads.min_logvar.fill_(-40.0)
        model.network.layers[-1].weight.zero_()
        for e in range(3):
            model.network.layers[-1].bias[e, 0, 0] = float(e)
    state = model.initial(th.zeros(3000, 2))
    first = model.decode(model.step(state, th.zeros(3000, 1), generator=generator).state)[:, 0].round().long()
    second = model.decode(model.step(state, th.zeros(3000, 1), generator=generator).state)[:, 0].round().long()
    counts = th.bincount(first * 3 + second, minlength=9)
    # Independent of each other: nine combinations of about 333 rows (standard deviation 17).
    assert (counts - 3000 / 9).abs().max() < 80


def test_deterministic_steps_are_the_mean_over_elites():
    model = EnsembleModel(OBS, ACT, members=3, elites=2, **SMALL)
    model.elites = [0, 2]
    rows = linear_data(20).transitions()
    state = model.initial(rows.obs)
    step = model.step(state, rows.action, deterministic=True)
    members = model.members(state, rows.action)
    th.testing.assert_close(step.state["obs"], members.mean.mean(0))
    th.testing.assert_close(step.reward, members.reward.mean(0))


def test_ctrl_c_during_a_fit_leaves_a_usable_model(generator):
    model = EnsembleModel(OBS, ACT, members=3, elites=2, **SMALL)
    epochs = []

    def interrupt(words: str) -> None:
        epochs.append(words)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    model.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        model.fit(linear_data(400), generator=generator)
    assert model.fitted
    assert not model.training
    assert len(set(model.elites)) == 2
    assert model.step(model.initial(th.zeros(3, 2)), th.zeros(3, 1)).reward.isfinite().all()


def test_the_loss_of_the_contract_is_the_one_that_fit_minimises():
    """The terms per row that others weigh, and the sum that is computed with fewer operations."""
    model = EnsembleModel(OBS, ACT, members=3, elites=2, **SMALL)
    rows = linear_data(200).transitions(50)
    loss = model.loss(rows)
    assert {name: tuple(value.shape) for name, value in loss.rows.items()} == {"numbers": (50,), "termination": (50,)}
    inputs, targets = model.encode_rows(rows)
    everyone = type(targets)(*(value.expand(3, *value.shape) for value in targets))
    raw = model.network(model.standardiser(inputs).expand(3, -1, -1))
    th.testing.assert_close(loss.total(), model.heads.loss(raw, everyone))
    # Weights of rows, as in prioritised replay.
    first = th.zeros(50).index_fill(0, th.tensor([0]), 50.0)
    alone = model.loss(type(rows)(*(column[:1] for column in rows)))
    th.testing.assert_close(loss.total(first), alone.total())


@pytest.mark.parametrize(("name", "value"), [("members", "two"), ("elites", 0), ("members", 1.5)])
def test_numbers_of_members_are_named(name, value):
    """TypeError: '<=' not supported between instances of 'int' and 'str'."""
    with pytest.raises(ValueError, match=rf"{name}={value!r}: give a whole number from 1 on"):
        EnsembleModel(OBS, ACT, **{**SMALL, name: value})


PAPER = {"noise": "constant", "layer_norm": 0.1, "dropout": 0.01, "bootstrap": "weights", "early_stopping": "statistical"}


def test_dhmbpos_ensemble_learns_the_noise(generator):
    th.manual_seed(0)
    model = EnsembleModel(OBS, ACT, members=3, elites=3, nll_beta=0.0, **SMALL, **PAPER)
    metrics = model.fit(linear_data(noise=0.3), FitBudget(max_epochs=60), generator=generator)
    rows = linear_data(300, seed=1).transitions()
    members = model.members(model.initial(rows.obs), rows.action)
    assert float(members.variance.mean().sqrt().detach()) == pytest.approx(0.3, rel=0.15)
    assert (members.variance.std((0, 1)) < 0.05).all(), "one variance for all inputs"
    assert float((members.mean - rows.next_obs).square().mean().sqrt().detach()) < 0.36
    assert metrics["holdout_error"] == pytest.approx(sum(model.holdout_scores) / 3)


def test_weights_make_members_differ_as_samples_of_rows_do(generator):
    th.manual_seed(0)
    spread = {}
    for bootstrap in ("rows", "weights"):
        model = EnsembleModel(OBS, ACT, members=5, elites=5, bootstrap=bootstrap, **SMALL)
        model.fit(linear_data(200, noise=1.0), FitBudget(max_epochs=150, patience=150), generator=generator)
        rows = linear_data(300, seed=1).transitions()
        spread[bootstrap] = float(model.members(model.initial(rows.obs), rows.action).mean.std(0).mean().detach())
    assert spread["rows"] > 0.02
    assert 0.4 < spread["weights"] / spread["rows"] < 2.5


def test_a_fit_with_dropout_repeats_with_the_seed():
    weights = []
    for seed in (1, 1, 2):
        th.manual_seed(0)
        model = EnsembleModel(OBS, ACT, members=2, elites=2, **SMALL, **PAPER)
        before = th.get_rng_state()
        model.fit(linear_data(300), FitBudget(max_epochs=2), generator=th.Generator().manual_seed(seed))
        assert th.equal(before, th.get_rng_state()), "the global stream is not touched"
        weights.append(model.network.layers[0].weight.detach().clone())
    assert th.equal(weights[0], weights[1])
    assert not th.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bootstrap": "none"}, "bootstrap='none'"),
        ({"noise": "none"}, "noise='none'"),
        ({"noise": "constant", "probabilistic": False}, "a regression has no noise"),
        ({"early_stopping": "never"}, "early_stopping='never'"),
        ({"layer_norm": [1.0]}, "1 entries for 2 hidden layers"),
        ({"layer_norm": -1.0}, "from 0 to below inf"),
        ({"dropout": 1.0}, "from 0 to below 1.0"),
        ({"multi_step": 0}, "multi_step"),
        ({"input_noise": -1.0}, "input_noise"),
        ({"multi_step_gradient": "False"}, "multi_step_gradient='False': give True or False"),
        ({"normalize_targets": "no"}, "normalize_targets='no'"),
        ({"probabilistic": None}, "probabilistic=None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EnsembleModel(OBS, ACT, **SMALL, **settings)


def test_with_gradients_members_are_drawn_in_equal_numbers(generator):
    model = EnsembleModel(OBS, ACT, members=3, elites=3, **SMALL)
    with th.no_grad():
        model.heads.max_logvar.fill_(-30.0)
        model.heads.min_logvar.fill_(-40.0)
        model.network.layers[-1].weight.zero_()
        for e in range(3):
            model.network.layers[-1].bias[e, 0, 0] = float(e)
    state, totals = model.initial(th.zeros(100, 2)), th.zeros(100)
    for _ in range(300):
        drawn = model.decode(model.step(state, th.zeros(100, 1), generator=generator).state)[:, 0].detach().round()
        assert sorted(th.bincount(drawn.long(), minlength=3).tolist()) == [33, 33, 34]
        totals += drawn
    # Every row's member is uniform: a mean of 1 with a deviation of sqrt(2/3) over 300 draws.
    assert (totals / 300 - 1).abs().max() < 5 * (2 / 3 / 300) ** 0.5
