"""All runs of a learning benchmark, and the report on them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.examples.benchmark_runs import TINY, records, report, run, run_all, tasks

# ------------------------------------------------------------------------------------------------------------------- run_all


def test_the_first_seed_of_every_task_and_variant_comes_first(tmp_path):
    short = replace(TINY, name="short", seeds=(0,))
    jobs = run_all.plan_jobs([TINY, short], ["mbpo", "sac"], tmp_path)
    assert [(job.task, job.variant, job.seed) for job in jobs] == [
        ("tiny", "mbpo", 0),
        ("tiny", "sac", 0),
        ("short", "mbpo", 0),
        ("short", "sac", 0),
        ("tiny", "mbpo", 1),
        ("tiny", "sac", 1),
    ]
    assert jobs[0].path == run.make_run(TINY, "mbpo", 0, results=tmp_path).path


def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    jobs = run_all.plan_jobs([TINY], ["mbpo", "sac"], tmp_path / "results")
    monkeypatch.setattr(run_all, "POLL_SECONDS", 0.02)
    script = "import sys; print('boom'); sys.exit('mbpo' in sys.argv and '0' in sys.argv)"
    monkeypatch.setattr(
        run_all, "command_of", lambda job, passed_on: [sys.executable, "-c", script, job.variant, str(job.seed)]
    )
    failed = run_all.work(jobs, 2, [], tmp_path / "logs")
    assert [(job.variant, job.seed) for job in failed] == [("mbpo", 0)]
    printed = capsys.readouterr().out
    assert "[4/4]" in printed
    assert printed.count("FAILED") == 1
    assert "    boom" in printed


def test_leaving_stops_the_children(tmp_path, monkeypatch):
    started = []
    real = subprocess.Popen

    def remember(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    def interrupt(seconds):
        monkeypatch.setattr(run_all.time, "sleep", sleep)
        raise KeyboardInterrupt

    sleep = run_all.time.sleep
    monkeypatch.setattr(run_all.subprocess, "Popen", remember)
    monkeypatch.setattr(run_all.time, "sleep", interrupt)
    monkeypatch.setattr(run_all, "command_of", lambda job, passed_on: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(KeyboardInterrupt):
        run_all.work(run_all.plan_jobs([TINY], ["mbpo"], tmp_path), 2, [], tmp_path)
    assert len(started) == 2
    assert all(process.returncode not in (None, 0) for process in started)


def fixture_record(variant, seed, means, *, task=TINY, finished=True, threshold=-200.0, wall=10.0, label=None):
    made = run.make_run(replace(task, threshold=threshold), variant, seed, label=label)
    steps = [index * 20 for index in range(len(means))]
    curve = [
        {"step": step, "mean": mean, "returns": [mean], "wall_s": wall * step / 60, "phase_seconds": {}, "logged": {}}
        for step, mean in zip(steps, means, strict=True)
    ]
    return made.conditions() | {
        "versions": {"torch": "0"},
        "machine": {"cpu": "a cpu", "cores": 2, "system": "Linux"},
        "sources": ["abc"],
        "threads": 1,
        "reached_at": records.reached_at(steps, means, threshold),
        "finished": finished,
        "resumed_at": [],
        "curve": curve,
    }


def write_fixture(results, record):
    name = records.run_name(record["variant"], record["seed"], record["label"])
    records.write_record(results / record["task"] / f"{name}.json", record)


def test_time_left_is_steps_left_at_the_pace_of_such_runs(tmp_path):
    jobs = run_all.plan_jobs([replace(TINY, threshold=-200.0)], ["mbpo", "sac"], tmp_path)
    assert run_all.seconds_left(jobs, 1) is None
    write_fixture(tmp_path, fixture_record("mbpo", 0, [-1, -1, -1, -1], wall=60))  # 1 s a step
    write_fixture(tmp_path, fixture_record("sac", 0, [-1, -1, -1, -1], wall=6))  # 0.1 s a step
    write_fixture(tmp_path, fixture_record("mbpo", 1, [-1, -1], finished=False, wall=600))  # too short to tell a pace
    left = [job for job in jobs if not run_all.is_finished(job)]
    assert [(job.variant, job.seed) for job in left] == [("mbpo", 1), ("sac", 1)]
    assert run_all.seconds_left(left, 1) == pytest.approx(40 * 1.0 + 60 * 0.1)
    assert run_all.seconds_left(left, 2) == pytest.approx(23.0)


def test_results_of_other_settings_are_neither_skipped_nor_continued_silently(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "tiny", TINY)
    old = fixture_record("mbpo", 0, [-1, -1, -1, -1], threshold=TINY.threshold)
    job = run_all.plan_jobs([TINY], ["mbpo"], tmp_path)[0]
    write_fixture(tmp_path, old)
    assert run_all.is_finished(job)
    assert "--fresh" not in run_all.command_of(job, [])

    old["settings"]["gradient_steps"] = 40
    write_fixture(tmp_path, old)
    assert not run_all.is_finished(job)
    assert run_all.command_of(job, [])[-1] == "--fresh"
    arguments = ["tiny", "--variants", "mbpo", "--results", str(tmp_path), "--checkpoints", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"(?s)other settings; give --replace-changed.*mbpo-seed0\.json"):
        run_all.main(arguments)


# -------------------------------------------------------------------------------------------------------------------- report


@pytest.fixture
def results(tmp_path):
    write_fixture(tmp_path, fixture_record("mbpo", 0, [-1000, -100, -150, -110]))
    write_fixture(tmp_path, fixture_record("mbpo", 1, [-1000, -400, -300, -500]))
    write_fixture(tmp_path, fixture_record("mbpo", 2, [-1000, -190, -180, -170], wall=200))
    write_fixture(tmp_path, fixture_record("model-off", 0, [-1000, -900, -800], finished=False))
    write_fixture(tmp_path, fixture_record("mbpo", 3, [0, 0, 0, 0], label="lucky"))
    return tmp_path


def test_the_report_gives_every_seed_and_the_median(results):
    assert report.write_report(results) == ["tiny"]
    rows = [line for line in (results / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert rows == [
        "| variant | seed | >= -200 at step | last 3 evaluations | average over the run | training time |  |",
        "| mbpo | 0 | 40 | -120.0 | -268.3 | 10 s |  |",
        "| mbpo | 1 | > 60 | -400.0 | -483.3 | 10 s |  |",
        "| mbpo | 2 | 40 | -180.0 | -318.3 | 3 min 20 s |  |",
        "| **mbpo** | **median** | **40** | **-180.0** | **-318.3** | **10 s** | 2 of 3 reached within 60 |",
        "| model-off | 0 | > 60 | -900.0 | -900.0 | 7 s | unfinished, at step 40 |",
    ]
    assert (results / "tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_threshold_reached_by_a_minority_is_not_reached_in_the_median(results):
    write_fixture(results, fixture_record("mbpo", 0, [-1000, -900, -800, -700]))
    report.write_report(results)
    assert "| **mbpo** | **median** | **> 60** |" in (results / "README.md").read_text()


def test_the_report_follows_from_the_files_alone(results):
    report.write_report(results)
    first = {path.name: path.read_bytes() for path in results.glob("*.*")}
    report.write_report(results)
    assert {path.name: path.read_bytes() for path in results.glob("*.*")} == first


def test_labelled_runs_are_listed_for_tuning_only(results):
    report.write_report(results)
    assert "lucky" not in (results / "README.md").read_text()
    assert any("mbpo seed 3 lucky" in line for line in report.tuning_lines(results))


def test_seeds_that_were_fixed_but_not_run_are_shown(tmp_path):
    pendulum = tasks.TASKS["pendulum"]
    short = replace(pendulum, total_steps=60, eval_every=20, deadline=20)
    write_fixture(tmp_path, fixture_record("mbpo", 1, [-1000, -100, -150, -110], task=short))
    report.write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for seed in (0, 2, 3, 4):
        assert f"| mbpo | {seed} |  |  |  |  | not started |" in text
    # It reached the threshold, but at step 40 only where the deadline is 20.
    assert "of 1 finished of 5; 0 of 5 reached within 20" in text
    assert "(required within 20 steps)" in text


def test_different_settings_among_the_seeds_are_said(results):
    other = fixture_record("mbpo", 1, [-1000, -400, -300, -500])
    other["settings"]["gradient_steps"] = 40
    write_fixture(results, other)
    report.write_report(results)
    text = (results / "README.md").read_text()
    assert "**The seeds of mbpo have different settings.**" in text
    assert "**The settings of mbpo and model-off differ in more than the world model.**" in text
    assert "`mbpo` (seeds 0, 2)" in text


def test_a_control_with_other_steps_is_said(results):
    report.write_report(results)
    assert "**The" not in (results / "README.md").read_text()
    longer = replace(TINY, total_steps=80)
    write_fixture(results, fixture_record("model-off", 0, [-1000, -900, -800, -700, -600], task=longer))
    report.write_report(results)
    assert "**The runs differ in their task" in (results / "README.md").read_text()


def test_a_library_that_changed_between_or_within_runs_is_said(results):
    report.write_report(results)
    assert "state of the library (digest): `abc`" in (results / "README.md").read_text()
    other = fixture_record("mbpo", 1, [-1000, -400, -300, -500]) | {"sources": ["abc", "def"]}
    write_fixture(results, other)
    report.write_report(results)
    text = (results / "README.md").read_text()
    assert "| mbpo | 1 | > 60 | -400.0 | -483.3 | 10 s | the library changed on the way |" in text
    assert "- state of the library (digest) `def`: mbpo 1\n" in text


def test_the_median_curve_stops_where_the_shortest_run_is(results):
    two = [json.loads((results / "tiny" / f"{name}-seed0.json").read_text()) for name in ("mbpo", "model-off")]
    assert report.median_curve(two) == ([0, 20, 40], [-1000, -500, -475])
