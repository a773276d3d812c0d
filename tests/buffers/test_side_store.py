"""Values that are stored beside the rows of a replay buffer."""

import numpy as np
import pytest
import torch as th

from sb3_mbrl.buffers import ReplayData, SideStore
from tests.buffers.filled import filled


def test_side_values_stay_with_their_rows():
    buffer = filled(30, n_envs=2)
    side = SideStore(buffer)
    for pos in range(30):
        side.put("time", pos, buffer.observations[pos])
    data = ReplayData(buffer, side)
    rows, envs = data.draw(20)
    assert th.equal(side.get("time", rows, envs), th.as_tensor(buffer.observations[rows, envs]))
    with pytest.raises(ValueError, match="has no 'snapshot' stored with some of its rows"):
        side.get("snapshot", rows, envs)


def test_rows_without_a_side_value_are_not_drawn():
    """An oracle was given snapshots of zeros for rows that another agent had collected."""
    buffer = filled(30)
    side = SideStore(buffer)
    for pos in (3, 7):
        side.put("time", pos, buffer.observations[pos])
    rows, envs = ReplayData(buffer, side, "time").draw(50)
    assert set(rows) == {3, 7}
    with pytest.raises(ValueError, match="stored with some of its rows"):
        side.get("time", np.array([3, 4]), envs[:2])
