"""The records that parts exchange."""

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
