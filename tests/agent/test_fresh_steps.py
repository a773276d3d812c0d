"""Steps that a jointly learning world model predicts before it trains on them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.agent.fresh_steps import EVERY, ROWS, FreshSteps
from sb3_mbrl.agent.recorder import Recorder
from sb3_mbrl.contracts import Prediction, Transitions
from tests.helpers.dreamers import small


class Shift:
    """A model that adds the action, and ``bias``."""

    device, decodes = th.device("cpu"), True

    def __init__(self, bias=0.0):
        self.bias = bias

    def step(self, state, action, *, deterministic=False, generator=None):
        assert deterministic
        return Prediction(state + action + self.bias, action[:, 0], th.full((len(action),), 0.5))

    def decode(self, state):
        return state


def logged(model, seed=0):
    recorder = Recorder()
    values = {}
    recorder.record_all = lambda prefix, metrics: values.update(metrics)
    fresh = FreshSteps(spaces.Box(-9, 9, (2,)), recorder)
    rng = th.Generator().manual_seed(seed)
    rows = []
    while not values:
        obs, action = th.randn(4, 2, generator=rng), th.randn(4, 2, generator=rng)
        batch = Transitions(obs, action, obs + action, 2 * action[:, 0], th.zeros(4))
        fresh.evaluate(model, obs, batch)
        rows.append(batch)
    return values, rows


def test_metrics_are_those_of_their_formulas():
    values, rows = logged(Shift(0.5))
    assert len(rows) * 4 == ROWS
    truth, reward = th.cat([row.next_obs for row in rows]), th.cat([row.reward for row in rows])
    copied = th.cat([row.action for row in rows])  # next_obs - obs
    variance = truth.double().var(0, correction=0)
    assert values["error_1"] == pytest.approx(float((0.25 / variance).mean().sqrt()))
    assert values["copy_error_1"] == pytest.approx(float((copied.double().square().mean(0) / variance).mean().sqrt()))
    # The model says half of the reward.
    assert values["reward_error"] == pytest.approx(
        float(((reward / 2).square().mean() / reward.var(correction=0)).sqrt()), rel=1e-4
    )
    assert values["term_brier"] == pytest.approx(0.25)


def test_a_perfect_model_has_no_error():
    assert logged(Shift())[0]["error_1"] == 0.0


def test_a_dreamer_predicts_a_step_before_it_trains_on_it(monkeypatch):
    agent = small()
    events = []
    evaluate, train = agent.fresh.evaluate, agent.train

    def watched(model, state, rows):
        events.append(("evaluate", agent.num_timesteps))
        np.testing.assert_array_equal(rows.next_obs, agent.replay_buffer.next_observations[agent.replay_buffer.pos - 1])
        evaluate(model, state, rows)

    def trained(*args, **kwargs):
        events.append(("train", agent.num_timesteps))
        train(*args, **kwargs)

    monkeypatch.setattr(agent.fresh, "evaluate", watched)
    monkeypatch.setattr(agent, "train", trained)
    agent.learn(48 + 4 * EVERY)
    evaluated = [(place, step) for place, (event, step) in enumerate(events) if event == "evaluate"]
    assert len(evaluated) >= 3
    for place, step in evaluated:
        assert all(at < step for event, at in events[:place] if event == "train")


def test_sums_continue_after_a_load(tmp_path):
    agent = small().learn(48 + 3 * EVERY)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", device="cpu")
    assert loaded.fresh.steps == agent.fresh.steps > 0
    assert loaded.fresh._rows == agent.fresh._rows > 0
    for name, sums in agent.fresh._sums.items():
        assert th.equal(loaded.fresh._sums[name], sums)
