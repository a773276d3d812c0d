"""Imagined episodes: longer rollouts that stay."""

import pytest

from sb3_mbrl import MBPO
from sb3_mbrl.imagination import BranchedRollouts
from sb3_mbrl.imagination.m2ac import MaskedRollouts
from sb3_mbrl.imagination.macura import TrustedRollouts
from sb3_mbrl.imagination.mba import ImaginedEpisodes


def test_they_begin_in_recent_states_and_their_rows_stay():
    rule = ImaginedEpisodes()
    assert (rule.horizon(0), rule.starts_per_step, rule.freq, rule.max_age) == (10, 5, 250, 10_000)
    assert rule._rule is not None
    agent = MBPO(
        "MlpPolicy",
        "Pendulum-v1",
        world_model="pendulum",
        imagination="mba",
        imagination_kwargs={"starts_per_step": 1, "freq": 20},
        learning_starts=20,
        gradient_steps=1,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    ).learn(100)
    assert agent.imagined is not None
    assert len(agent.imagined) == pytest.approx(100 * 10, abs=250), "none is forgotten: ten steps for every real one"


def test_long_short_and_branched_rollouts_by_one_setting():
    long, short, branched = (BranchedRollouts(rollouts=name) for name in ("long", "short", "branched"))
    assert [rule.horizon(0) for rule in (long, short, branched)] == [1000, 1, 1]
    assert BranchedRollouts(rollouts="short", horizon=7).horizon(0) == 7
    assert branched._rule is None
    assert long._rule is not None
    assert short._rule is not None
    with pytest.raises(ValueError, match="rollouts='long' begin where episodes do, and starts='recent' elsewhere"):
        BranchedRollouts(rollouts="long", starts="recent")
    with pytest.raises(ValueError, match="rollouts='deep': choose"):
        BranchedRollouts(rollouts="deep")


def test_only_branched_rollouts_are_long_or_short():
    """In other rules ``rollouts="long"`` changed the start states, and left the horizon at 1, 5 or 10."""
    for rule in (ImaginedEpisodes, MaskedRollouts, TrustedRollouts):
        with pytest.raises(ValueError, match="sets the horizon of imagination='branched'"):
            rule(rollouts="long")
