"""The records that parts exchange."""

import copy
import pickle

import pytest
import torch as th

from sb3_mbrl.contracts import Loss


def test_the_total_of_a_loss_is_the_weighted_sum_of_means():
    loss = Loss({"a": th.tensor([1.0, 3.0]), "b": th.ones(2, 3)}, {"penalty": th.tensor(5.0)}, {"a": 2.0, "penalty": 0.1})
    assert float(loss.total()) == pytest.approx(2 * 2 + 1 + 0.5)


def test_weights_of_rows_count_for_all_steps_of_a_row():
    """Weights ``(B,)`` were multiplied with the last axis of terms ``(B, T)``: wrong where ``T`` is ``B``, else an error."""
    steps = th.tensor([[1.0, 2.0], [3.0, 4.0]])
    loss = Loss({"one": th.tensor([10.0, 20.0]), "steps": steps}, {"penalty": th.tensor(100.0)})
    assert float(loss.total(th.tensor([1.0, 0.0]))) == pytest.approx(10 / 2 + (1 + 2) / 4 + 100)
    only_steps = loss._replace(rows={"steps": steps})
    assert float(only_steps.total(th.tensor([[1.0, 0.0], [0.0, 1.0]]))) == pytest.approx((1 + 4) / 4 + 100)


def test_a_loss_keeps_its_kind_when_it_is_replaced_copied_or_pickled():
    loss = Loss({"a": th.ones(2)}, metrics={"kl": th.tensor(3.0)})
    for other in (loss._replace(weights={"a": 2.0}), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(other) is Loss
        assert other.metrics["kl"] == 3.0
    assert Loss() == ({}, {}, {}, None, {})


def test_the_old_name_of_the_metrics_is_refused_with_the_new_one():
    with pytest.raises(TypeError, match=r"^Loss\(figures=.*called metrics now, so give Loss\(metrics="):
        Loss({"a": th.ones(2)}, figures={"kl": th.tensor(3.0)})
    with pytest.raises(TypeError, match=r"Loss does not take 'row'; it takes rows, scalars, weights, states, metrics"):
        Loss(row={"a": th.ones(2)})
