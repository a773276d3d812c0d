"""The experiment on model correction: its error, its record and its table."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.models.ensemble import EnsembleModel
from tests.examples.benchmark_runs import records

import correction  # isort: skip (found by benchmark_runs)
import correction_report  # isort: skip


def walk(lengths: list[int]) -> ReplayBuffer:
    """Fill a buffer with episodes of ``x' = x + 1``."""
    buffer = ReplayBuffer(sum(lengths), spaces.Box(-1e3, 1e3, (1,)), spaces.Box(-1, 1, (1,)), device="cpu")
    for length in lengths:
        for t in range(length):
            rows = (np.array([[value]], np.float32) for value in (t, t + 1, 0.0))
            buffer.add(*rows, np.zeros(1), np.array([t == length - 1]), [{"TimeLimit.truncated": t == length - 1}])
    return buffer


def test_the_error_is_that_of_open_loop_predictions_within_episodes():
    """A model that stands still is wrong by as many as the steps: the mean of squares over the variance."""
    buffer = walk([25, 30])
    model = EnsembleModel(buffer.observation_space, buffer.action_space, members=2, elites=2, hidden=[4], device="cpu").eval()
    with th.no_grad():
        for layer in model.network.layers:
            layer.weight.zero_()
    variance = np.concatenate([np.arange(1, 26), np.arange(1, 31)]).astype(np.float64).var(ddof=1)
    errors = correction.open_loop_errors(model, buffer)
    assert errors == pytest.approx([step**2 / variance for step in correction.STEPS], rel=1e-5)


def test_a_table_of_medians(tmp_path, monkeypatch):
    entries = [
        {
            "variant": variant,
            "seed": seed,
            "errors": [scale * (seed + 1), 2.0, 3.0, scale * 10**seed],
            "batches": 9.0,
            "cpu_s": 1.0,
        }
        for variant, scale in (("plain", 1.0), ("multi-step", 0.5))
        for seed in (0, 1, 2)
    ]
    record = {
        "env_id": "Pendulum-v1",
        "rows": 10,
        "held_out": 5,
        "max_batches": 9,
        "settings": {},
        "variants": correction.VARIANTS,
        "steps": [1, 5, 10, 20],
        "machine": {"cpu": "CPU"},
        "errors": entries,
    }
    records.write_record(tmp_path / "pendulum.json", record)
    monkeypatch.setattr(correction_report, "RESULTS", tmp_path)
    correction_report.main()
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| single steps | 2 | 2 | 3 | 10 | 1, 10, 100 | 9 | 1 |",
        "| `multi_step=5` | 1 | 2 | 3 | 5 | 0.5, 5, 50 | 9 | 1 |",
    ]


def test_noise_columns_are_appended_and_repeat_with_the_seed():
    import envs  # found by benchmark_runs

    env = envs.make_noisy("Pendulum-v1")
    first, again = env.reset(seed=3)[0], env.reset(seed=3)[0]
    assert first.shape == env.observation_space.shape == (6,)
    assert env.observation_space.contains(first)
    assert np.array_equal(first, again)
    noise = np.array([env.step(np.zeros(1))[0][3:] for _ in range(200)])
    assert abs(noise.mean()) < 0.2
    assert noise.std() == pytest.approx(1.0, abs=0.15)
