from collections.abc import Iterator

import pytest
import torch as th

from sb3_mbrl.contracts import FitBudget
from sb3_mbrl.fitting import (
    MIN_ROUND,
    BestWeights,
    StatisticalBestWeights,
    bootstrap_weights,
    holdout_mask,
    p_value,
    train_epochs,
)


def test_a_row_that_was_trained_on_is_never_held_out_later():
    """mbrl-lib and MBPO's code draw the holdout anew at every fit, and so evaluate a model on rows that it was trained on."""
    few, many = holdout_mask(th.arange(1000), FitBudget()), holdout_mask(th.arange(20_000), FitBudget())
    assert th.equal(few, many[:1000])
    assert 0.17 < few.float().mean() < 0.23


def test_the_holdout_is_capped_and_shrinks_to_a_subset():
    budget = FitBudget(max_holdout=500)
    small, large = holdout_mask(th.arange(2000), budget), holdout_mask(th.arange(50_000), budget)
    assert 400 < large.sum() < 600
    assert not (large[:2000] & ~small).any()


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_data_leaves_a_row_to_train_on(n):
    mask = holdout_mask(th.arange(n), FitBudget(holdout_ratio=0.99))
    assert mask.shape == (n,)
    assert n == 0 or not mask.all()


def test_every_member_keeps_its_own_best_weights():
    """mbrl-lib keeps the whole ensemble when any member improves: elites are then ranked by scores of other weights."""
    weights = th.zeros(2, 3)
    best = BestWeights([weights], 2, 0.01)
    for value, scores in [(1.0, [1.0, 1.0]), (2.0, [0.5, 2.0]), (3.0, [0.7, 0.1])]:
        weights.fill_(value)
        best.update(th.tensor(scores))
    best.restore()
    assert weights.tolist() == [[2.0] * 3, [3.0] * 3]
    th.testing.assert_close(best.scores, th.tensor([0.5, 0.1]))


def test_nan_is_never_the_best():
    weights = th.zeros(1, 1)
    best = BestWeights([weights], 1, 0.01)
    best.update(th.tensor([3.0]))
    weights.fill_(9.0)
    assert not best.update(th.tensor([float("nan")]))
    best.restore()
    assert weights.item() == 0.0


class Script:
    """A model whose holdout errors are given; its weight counts the epochs."""

    def __init__(self, errors: list[float], batches: int = MIN_ROUND) -> None:
        self.weight, self.errors, self.batches, self.epoch = th.zeros(1, 1), errors, batches, 0
        self.best = BestWeights([self.weight], 1, 0.01)

    def steps(self) -> Iterator[float]:
        self.epoch += 1
        for _ in range(self.batches):
            self.weight.fill_(self.epoch)
            yield 0.0

    def evaluate(self) -> th.Tensor:
        return th.tensor([self.errors[min(self.epoch, len(self.errors) - 1)]])

    def run(self, **budget) -> dict[str, float]:
        return train_epochs(self.steps, self.evaluate, self.best, FitBudget(**budget))


def test_patience_counts_epochs_without_a_one_percent_improvement():
    # Epochs 3 to 8 improve by less than 1 %: six of them use up a patience of 5.
    script = Script([10.0, 5.0, 4.0, 3.99, 3.98, 3.975, 3.974, 3.973, 3.972])
    assert script.run(patience=5)["epochs"] == 8
    # The best weights are kept all the same.
    assert script.weight.item() == 8


def test_weights_before_the_fit_stay_when_nothing_is_better():
    script = Script([1.0, 2.0, 3.0, 4.0])
    script.run(patience=1)
    assert script.weight.item() == 0


def test_budget_in_epochs_and_batches():
    assert Script([1.0, 0.1, 0.01, 0.001]).run(max_epochs=2) == pytest.approx({"epochs": 2, "batches": 64, "loss": 0.0})
    assert Script([1.0, 0.1, 0.01, 0.001]).run(max_batches=50)["batches"] == 50


def test_patience_is_not_used_up_by_epochs_of_a_single_batch():
    """With five epochs of one batch each, fits on 300 rows of Pendulum-v1 ended at ten times the error they could reach."""
    looks = []
    script = Script([1.0], batches=1)

    def evaluate():
        looks.append(script.epoch)
        return script.evaluate()

    train_epochs(script.steps, evaluate, script.best, FitBudget(patience=2))
    assert looks == [0, 32, 64, 96]


def test_ctrl_c_leaves_the_best_weights():
    script = Script([3.0, 1.0, 2.0])

    def steps():
        if script.epoch == 2:
            raise KeyboardInterrupt
        yield from script.steps()

    with pytest.raises(KeyboardInterrupt):
        train_epochs(steps, script.evaluate, script.best, FitBudget())
    assert script.weight.item() == 1


@pytest.mark.parametrize("wrong", [{"max_epochs": 0}, {"max_batches": 0}, {"holdout_ratio": 1.0}, {"batch_size": 0}])
def test_impossible_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitBudget(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patience": float("nan")},
        {"batch_size": 2.5},
        {"batch_size": True},
        {"min_improvement": float("nan")},
        {"min_improvement": 5},
        {"max_batches": float("nan")},
        {"max_epochs": 0},
        {"max_holdout": -1},
        {"holdout_ratio": 1.0},
    ],
)
def test_a_budget_is_made_of_numbers_that_make_sense(wrong):
    """Regression: with a patience of NaN no fit began, and the untrained model was used."""
    with pytest.raises(ValueError, match=f"FitBudget: {next(iter(wrong))}="):
        FitBudget(**wrong)


def test_whole_floats_are_whole_numbers():
    assert FitBudget(max_batches=1e3, max_epochs=None).max_batches == 1000


def test_a_p_value_is_that_of_a_paired_t_test():
    """Student's one-sided p of the mean 0.9 of five numbers is 0.0492 (four degrees of freedom, t = 2.146)."""
    few = th.tensor([1.0, 2.0, 0.5, -0.3, 0.8])
    assert p_value(few) == pytest.approx(0.0492, abs=0.01)
    assert p_value(few) + p_value(-few) == pytest.approx(1.0)
    many = th.cat([th.ones(5000), -th.ones(4900)])  # z = 1.005
    assert p_value(many) == pytest.approx(0.1574, abs=1e-3)
    assert p_value(th.zeros(10)) == 0.5
    assert p_value(th.ones(10)) == 0.0


def test_weights_that_are_better_by_chance_are_not_kept():
    weights, rows = th.zeros(1), th.linspace(0, 1, 100)
    best = StatisticalBestWeights([weights])
    assert best.update(rows)
    weights.fill_(1.0)
    noise = th.where(th.arange(100) % 2 == 0, 0.5, -0.5)
    assert best.update(rows + noise - 0.01), "a fall of 0.01 with deviations of 0.5: p = 0.42, enough to go on"
    assert best.scores.item() == pytest.approx(0.5, abs=1e-6), "but not to be kept"
    weights.fill_(2.0)
    assert best.update(rows + noise - 0.2)
    weights.fill_(3.0)
    assert not best.update(rows + 1.0)
    assert not best.update(th.full((100,), float("nan")))
    best.restore()
    assert weights.item() == 2.0


def test_bootstrap_weights_belong_to_rows_and_members():
    weights = bootstrap_weights(th.arange(50_000), 4)
    th.testing.assert_close(weights[:, :100], bootstrap_weights(th.arange(100), 4), rtol=0, atol=0)
    assert weights.mean(1).sub(1).abs().max() < 0.02
    assert weights.var(1).sub(1).abs().max() < 0.05, "the variance of an exponential distribution with mean 1 is 1"
    assert (th.corrcoef(weights) - th.eye(4)).abs().max() < 0.02
