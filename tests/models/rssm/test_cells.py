"""Recurrent cells against their formulas."""

import pytest
import torch as th

from sb3_mbrl.models.rssm.cells import BlockGRUCell, LayerNormGRUCell
from sb3_mbrl.models.rssm.settings import make_settings


def test_the_block_gru_by_the_formula(generator):
    cell = BlockGRUCell(8, 3, 2, hidden=5, blocks=2)
    deter, stoch, action = (th.randn((4, n), generator=generator) for n in (8, 3, 2))
    action = 2 * action
    got = cell(deter, stoch, cell.prepare(action))
    clipped = action / action.abs().clamp(min=1)
    seen = th.cat([cell.from_deter(deter), cell.from_stoch(stoch), cell.from_action(clipped)], 1)
    hidden = []
    for b in range(2):
        inputs = th.cat([deter[:, 4 * b : 4 * b + 4], seen], 1)
        hidden.append(inputs @ cell.mixed.weight[b] + cell.mixed.bias[4 * b : 4 * b + 4])
    x = th.nn.functional.silu(cell.norm(th.cat(hidden, 1)))
    expected = []
    for b in range(2):
        gates = x[:, 4 * b : 4 * b + 4] @ cell.gates.weight[b] + cell.gates.bias[12 * b : 12 * b + 12]
        reset, candidate, update = gates.chunk(3, 1)
        candidate, update = th.tanh(th.sigmoid(reset) * candidate), th.sigmoid(update - 1)
        expected.append(update * candidate + (1 - update) * deter[:, 4 * b : 4 * b + 4])
    th.testing.assert_close(got, th.cat(expected, 1))


@pytest.mark.parametrize("kind", ["gru", "layer_norm_gru", "block_gru"])
def test_cells_go_on_with_action_and_sample(kind, generator):
    cell = make_settings("tiny", {"cell": kind, "deter": 16, "hidden": 8}).make_cell(4, 2)
    deter, stoch, action = (th.randn((3, n), generator=generator) for n in (16, 4, 2))
    once = cell(deter, stoch, cell.prepare(action))
    assert once.shape == (3, 16)
    assert not th.equal(once, cell(deter, stoch, cell.prepare(action + 0.5 * action.sign().neg())))
    assert not th.equal(once, cell(deter, stoch + 1, cell.prepare(action)))


def test_a_layer_norm_gru_forgets_slowly_at_first():
    """The update gate's bias of -1: sigmoid(-1) is new."""
    cell = LayerNormGRUCell(6, 2, 1, hidden=4)
    with th.no_grad():
        cell.norm.weight.zero_()
    deter = th.ones(1, 6)
    th.testing.assert_close(cell(deter, th.zeros(1, 2), th.zeros(1, 1)), deter * (1 - th.sigmoid(th.tensor(-1.0))))
