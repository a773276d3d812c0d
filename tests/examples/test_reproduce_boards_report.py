"""The report on boards is drawn from records."""

from tests.examples.benchmark_runs import records

import boards_report  # isort: skip (found by benchmark_runs)


def record(seed: int, losses: list[int], total: int = 200) -> dict:
    curve = [
        {"step": 100 * i, "wins": 5, "draws": 5, "losses": lost, "points": 7.5 / (10 + lost), "cpu_s": 60.0 * i}
        for i, lost in enumerate(losses)
    ]
    fixed = {"preset": {"gamma": 1.0}, "settings": {}, "n_envs": 16, "machine": {"cpu": "CPU"}}
    return {"task": "muzero-tictactoe", "seed": seed, "total_steps": total, "curve": curve, **fixed}


def test_a_row_per_seed_and_no_tuning_runs(tmp_path):
    folder = tmp_path / "muzero-tictactoe"
    for name, one in {
        "muzero-seed1": record(1, [90, 3]),
        "muzero-seed0": record(0, [80, 2, 0]),
        "muzero-seed100@try": record(100, [70]),
    }.items():
        records.write_record(folder / f"{name}.json", one)
    assert boards_report.write_report(tmp_path) == ["muzero-tictactoe"]
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("|")]
    assert rows == [
        "| seed | 0 | 100 | 200 | CPU minutes |",
        "|---|---|---|---|---|",
        "| 0 | 80 (0.083) | 2 (0.625) | 0 (0.750) | 2 |",
        "| 1 | 90 (0.075) | 3 (0.577) |  | 1 (up to 100 steps) |",
    ]
    assert (tmp_path / "muzero-tictactoe.png").stat().st_size > 1_000
