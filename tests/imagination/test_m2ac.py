"""M2AC's rule on two members whose disagreement is known."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.imagination.m2ac import MaskedRollouts
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))


def toy(**kwargs):
    return EnsembleToy(OBS, ACTION, device="cpu", **{"decay": 1.0, **kwargs})


def still(obs):
    """Take the action that does nothing."""
    return th.zeros(len(obs), 1)


def test_the_certain_rows_of_every_step_are_kept_with_a_penalty(generator):
    model, rule = toy(spread=0.1), MaskedRollouts(horizon=3, share=0.8, penalty=0.5)
    first = th.arange(1.0, 21.0)[:, None]  # members disagree in proportion to the state
    imagined = rule.imagine(model, model.initial(first), still, 3, generator=generator)
    for step in range(3):
        kept = int(0.8 * (3 - step) / 4 * 20)
        assert int(imagined.valid[step].sum()) == kept
        assert imagined.valid[step, imagined.obs[step, :, 0].abs().argsort()[:kept]].all()
    # KL of N(0.9 x, 0.01) from N(1.1 x, 0.01), the rest: (0.2 x)^2 / 0.02
    x, after = imagined.obs[0, :, 0], imagined.next_obs[0, :, 0]
    th.testing.assert_close(imagined.reward[0], after - 0.5 * (0.2 * x).square() / 0.02, rtol=1e-4, atol=1e-4)
    assert set((10 * after / x).round().tolist()) == {9.0, 11.0}, "every row is predicted by one member"


def test_a_single_step_keeps_the_share_itself(generator):
    model, rule = toy(), MaskedRollouts(share=0.3)
    imagined = rule.imagine(model, model.initial(th.randn(10, 1)), still, 1, generator=generator)
    assert int(imagined.valid.sum()) == 3


def test_rows_with_gaps_cannot_be_joined():
    with pytest.raises(ValueError, match="n_steps=3: MaskedRollouts leaves out single steps"):
        MaskedRollouts(horizon=3, n_steps=3)
