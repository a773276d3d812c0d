"""The compiled functions against the plain ones."""

import numpy as np
import pytest

from sb3_mbrl import jit
from sb3_mbrl.algorithms.dyna_q import planning
from tests.helpers.tables import GAMMA, chain


@pytest.mark.skipif(not jit.COMPILED, reason="numba is not installed")
def test_compiled_and_plain_are_the_same_to_the_last_bit():
    tables, uniforms = chain(), np.random.default_rng(0).random((500, 3))
    compiled, plain = np.zeros((4, 2)), np.zeros((4, 2))
    planning.dyna_q(compiled, tables, uniforms, 0.3, GAMMA)
    planning.dyna_q.py_func(plain, tables, uniforms, 0.3, GAMMA)
    assert np.array_equal(compiled, plain)
    assert compiled.any()
