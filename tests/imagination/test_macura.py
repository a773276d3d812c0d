"""MACURA's rule on two members whose disagreement is known."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl import MBPO
from sb3_mbrl.imagination.macura import TrustedRollouts
from sb3_mbrl.testing import EnsembleToy

OBS, ACTION = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))


def toy(**kwargs):
    return EnsembleToy(OBS, ACTION, device="cpu", **{"decay": 1.0, **kwargs})


def still(obs):
    """Take the action that does nothing."""
    return th.zeros(len(obs), 1)


def divergence(x):
    """Compute GJS of two members at ``x (1 - 0.1)`` and ``x (1 + 0.1)`` with equal variances: ``(0.2 x)^2 / (8 * 0.01)``."""
    return (0.2 * abs(x)) ** 2 / (8 * 0.01)


def test_rollouts_end_before_the_first_step_with_too_much_disagreement(generator):
    model, rule = toy(decay=1.5, spread=0.1), TrustedRollouts(horizon=8, factor=3.0, quantile=1.0)
    first = th.tensor([[1.0], [0.5], [0.1]])
    imagined = rule.imagine(model, model.initial(first), still, 8, generator=generator)
    assert rule.threshold == pytest.approx(3 * divergence(1.0), rel=1e-4)
    for row, x in enumerate([1.0, 0.5, 0.1]):
        steps = 0
        while steps < 8 and divergence(x * 1.5**steps) <= 3 * divergence(1.0):
            steps += 1
        assert int(imagined.valid[:, row].sum()) == steps
        assert imagined.valid[:steps, row].all(), "no step after the end"
    assert imagined.info["length"] == pytest.approx(float(imagined.valid.sum() / 3))


def test_the_threshold_is_the_mean_over_all_rollouts_and_is_saved(generator):
    model, rule = toy(decay=1.0, spread=0.1), TrustedRollouts(horizon=2, factor=1.0, quantile=0.5)
    for x in (1.0, 2.0, 3.0):
        rule.imagine(model, model.initial(th.full((5, 1), x)), still, 2, generator=generator)
    mean = sum(divergence(x) for x in (1.0, 2.0, 3.0)) / 3
    assert rule.threshold == pytest.approx(mean, rel=1e-4)
    other = TrustedRollouts()
    other.load_state_dict(rule.state_dict())
    assert (other.threshold, other.rounds) == (rule.threshold, 3)


def test_members_that_agree_are_trusted(generator):
    model, rule = toy(spread=0.0), TrustedRollouts(horizon=5)
    assert rule.imagine(model, model.initial(th.ones(4, 1)), still, 5, generator=generator).valid.all()


@pytest.mark.parametrize("settings", [{"factor": 0.0}, {"quantile": 1.5}, {"horizon": 0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrustedRollouts(**settings)


def test_an_agent_is_loaded_with_another_rule(tmp_path):
    """The file was called damaged, since the other rule keeps other values."""
    settings = {"world_model": "ensemble", "world_model_kwargs": {"members": 2, "elites": 2, "hidden": [8]}, "device": "cpu"}
    agent = MBPO("MlpPolicy", "Pendulum-v1", imagination="macura", policy_kwargs={"net_arch": [8]}, **settings)
    agent.imagination.load_state_dict({"threshold": 3.0, "rounds": 7})
    agent.save(tmp_path / "agent")
    assert MBPO.load(tmp_path / "agent").imagination.threshold == 3.0
    for other in ("branched", "wimle"):
        assert MBPO.load(tmp_path / "agent", imagination=other, imagination_kwargs={}).imagination is not None
