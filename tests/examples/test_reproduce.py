"""The harness of the learning benchmarks: its bookkeeping must be right, since the published numbers come from it."""

import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import SAC

from tests.examples.benchmark_runs import TINY, agents, records, report, run, run_all, steps_of, tasks, tiny_run

# ------------------------------------------------------------------------------------------------------------------ reached


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([], None),
        ([5], None),
        ([5, 5], 100),  # the second of two, not the first
        ([5, 4, 5, 5, 4], 300),  # one alone does not count
        ([5, 4, 5, 4, 5], None),
        ([1, 5, 5, 5], 200),  # the first pair
        ([5.0, float("nan"), 5.0, 5.0], 300),
    ],
)
def test_reached_is_the_second_of_two_in_a_row(means, expected):
    assert records.reached_at(range(0, 100 * len(means), 100), means, 5) == expected


@given(st.lists(st.floats(-10, 10), max_size=12), st.floats(-10, 10))
def test_reached_never_moves_when_a_run_goes_on(means, threshold):
    steps = list(range(len(means)))
    steps_reached = [records.reached_at(steps[:n], means[:n], threshold) for n in range(len(means) + 1)]
    reached = [step for step in steps_reached if step is not None]
    assert len(set(reached)) <= 1
    assert steps_reached[: len(steps_reached) - len(reached)] == [None] * (len(steps_reached) - len(reached))


def test_nothing_is_reached_without_a_threshold():
    assert records.reached_at([0, 1], [1.0, 1.0], None) is None


# -------------------------------------------------------------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path):
    path = tmp_path / "task" / "mbpo-seed0.json"
    records.write_record(path, {"curve": [{"step": 0, "mean": 1.5}]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_record(path, {"curve": [{"step": 0, "mean": 1.5}, {"step": 1, "mean": float("nan")}]})
    assert records.read_record(path) == {"curve": [{"step": 0, "mean": 1.5}]}
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "mbpo-seed0.json"
    records.write_record(path, {"curve": [], "finished": False})

    def crash(source, target):
        assert Path(source).read_text().endswith("}\n")  # complete before it takes the old one's place
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        records.write_record(path, {"curve": [], "finished": True})
    assert records.read_record(path) == {"curve": [], "finished": False}
    assert list(tmp_path.iterdir()) == [path]


def test_a_half_written_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"curve": [')
    with pytest.raises(ValueError, match=r"x\.json is not a result file .* delete it"):
        records.read_record(tmp_path / "x.json")


# ----------------------------------------------------------------------------------------------------------------- settings


WITH_CONTROL = [task for task in (*tasks.TASKS.values(), TINY) if "model-off" in task.variants]


@pytest.mark.parametrize("task", WITH_CONTROL, ids=lambda task: task.name)
def test_the_control_is_the_same_call_with_the_model_off(task):
    ours, control = (tasks.constructor_settings(task, variant) for variant in (task.algo, "model-off"))
    if task.algo in tasks.OWN_LEARNERS:  # the same learner, without the model in its updates
        assert control.pop("horizon") == 0
    else:
        assert control.pop("world_model", "missing") is None
    assert ours.pop("world_model", "ensemble") == "ensemble"  # presets name it
    assert control == ours


SMALL_TASKS = [task for name, task in tasks.TASKS.items() if task.algo != "mbpo" or name.endswith("pendulum")]


@pytest.mark.parametrize("task", SMALL_TASKS, ids=lambda task: task.name)
def test_every_variant_takes_its_settings(task):
    if task.settings.get("world_model") == "gp":
        pytest.importorskip("sb3_mbrl_gp", reason="the plug-in is not installed")
    for variant in task.variants:
        env = gym.make(task.env_id)
        arguments = agents.as_arguments(tasks.constructor_settings(task, variant), env.action_space)
        agent = agents.algorithm(task, variant)("MlpPolicy", env, device="cpu", **arguments)
        model = getattr(agent, "world_model", None)
        without = variant not in (task.algo, "true-model")
        if task.algo in tasks.OWN_LEARNERS and variant == "model-off":
            assert agent.horizon == 0
            continue
        assert (model is None) == without
        assert (variant == "true-model") == (model is not None and not model.learns)


def test_a_falling_rate_in_the_words_of_the_zoo():
    rate = agents.as_arguments({"learning_rate": "lin_2e-3"}, gym.spaces.Discrete(2))["learning_rate"]
    assert [rate(1.0), rate(0.5), rate(0.0)] == pytest.approx([2e-3, 1e-3, 0.0])


def test_action_noise_in_the_words_of_the_zoo():
    space = gym.spaces.Box(-1.0, 1.0, (3,))
    arguments = agents.as_arguments({"noise_type": "normal", "noise_std": 0.1, "gamma": 0.9}, space)
    noise = arguments.pop("action_noise")
    assert arguments == {"gamma": 0.9}
    np.random.seed(0)
    drawn = np.stack([noise() for _ in range(2_000)])
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0.0, 0.1], atol=5e-3)
    with pytest.raises(ValueError, match="noise_type='normal' for Discrete"):
        agents.as_arguments({"noise_type": "normal", "noise_std": 0.1}, gym.spaces.Discrete(2))


def test_sac_is_at_its_defaults_but_for_a_buffer_that_holds_the_run():
    assert tasks.constructor_settings(tasks.TASKS["hopper"], "sac") == {"buffer_size": 20_000}


def test_the_models_own_settings_do_not_change_the_control():
    hopper = tasks.TASKS["hopper"]
    given = {
        variant: tasks.conditions(hopper, variant, 0, tasks.constructor_settings(hopper, variant))
        for variant in ("mbpo", "model-off")
    }
    for variant, settings in given.items():
        before = deepcopy(settings)
        before["settings"] |= {"real_ratio": 0.05, "fit_freq": 1_000}
        assert set(tasks.changes(before, settings)) == ({"settings"} if variant == "mbpo" else set())
        before["settings"]["gradient_steps"] = 1
        assert set(tasks.changes(before, settings)) == {"settings"}
        assert set(tasks.changes(settings | {"seed": 1}, settings)) == {"seed"}


def test_overrides_reach_nested_settings_and_leave_the_task_alone():
    overrides = tasks.parse_overrides(
        [
            "total_steps=40",
            "fit_freq=5",
            "policy_kwargs.net_arch=[4, 4]",
            "termination_fn=None",
            "learning_rate=1e-2",
            "ent_coef=auto_0.1",
        ]
    )
    made = run.make_run(TINY, "mbpo", 0, overrides)
    assert made.task.total_steps == 40
    expected = dict(TINY.settings) | {"buffer_size": 40, "fit_freq": 5, "policy_kwargs": {"net_arch": [4, 4]}}
    assert made.settings == expected | {"termination_fn": None, "learning_rate": 0.01, "ent_coef": "auto_0.1"}
    assert TINY.settings["policy_kwargs"] == {"net_arch": [8]}


def test_a_run_with_overrides_never_writes_a_published_file():
    published = run.make_run(TINY, "mbpo", 0).path
    assert published.name == "mbpo-seed0.json"
    assert run.make_run(TINY, "mbpo", 0, {"fit_freq": 5}).path.name == "mbpo-seed0@fit_freq=5.json"
    assert run.make_run(TINY, "mbpo", 0, {"fit_freq": 5}, "a b/../c").path.parent == published.parent
    assert run.make_run(TINY, "mbpo", 0, {}, "again").path.name == "mbpo-seed0@again.json"


def test_inconsistent_lengths_are_refused():
    with pytest.raises(ValueError, match="total_steps=50 must be a multiple of eval_every=20"):
        replace(TINY, total_steps=50)


# --------------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_leaves_every_random_stream_and_the_policys_mode_alone(monkeypatch):
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    agent = SAC("MlpPolicy", env, seed=0, device="cpu", buffer_size=10, policy_kwargs={"net_arch": [8]})
    agent.policy.set_training_mode(True)
    predict = agent.predict

    def predict_with_draws(obs, state, episode_start, deterministic):
        random.random(), np.random.rand(), th.rand(1)
        return predict(obs, state, episode_start, deterministic=deterministic)

    monkeypatch.setattr(agent, "predict", predict_with_draws)
    run.set_random_states(states := run.random_states())
    expected = (random.random(), np.random.rand(), th.rand(1).item())
    run.set_random_states(states)
    first = run.evaluate(agent, env, 2)
    assert (random.random(), np.random.rand(), th.rand(1).item()) == expected
    assert agent.policy.training
    assert run.evaluate(agent, env, 2) == first  # the same start states, whatever was drawn in between
    assert first[0] != first[1]


def test_episodes_played_together_are_those_played_one_after_the_other():
    agent = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    one = run.evaluate(agent, gym.make("Pendulum-v1", max_episode_steps=7), 3)
    envs = [gym.make("Pendulum-v1", max_episode_steps=7) for _ in range(3)]
    assert run.evaluate_together(agent, envs) == pytest.approx(one, rel=1e-5)


def test_evaluation_hands_the_policy_state_on():
    """Without its state a planner or a recurrent agent would begin a new episode at every step."""
    calls = []

    class Remembering:
        policy = th.nn.Linear(1, 1)

        def predict(self, obs, state, episode_start, deterministic):
            calls.append((state, bool(episode_start[0])))
            return np.zeros(1, np.float32), len(calls)

    agent = Remembering()
    agent.policy.set_training_mode = lambda mode: None
    run.evaluate(agent, gym.make("Pendulum-v1", max_episode_steps=3), 2)
    assert calls == [(None, True), (1, False), (2, False), (None, True), (4, False), (5, False)]


def test_the_episodes_of_training_are_a_planners_curve(tmp_path):
    """Four episodes of 30 steps; the second that reaches the threshold is not waited for."""
    settings = {"learning_starts": 30, "fit_freq": 60, "fit_kwargs": {"max_batches": 5}}
    planner = {"horizon": 2, "population": 4, "iterations": 1}
    model = {"members": 2, "elites": 2, "hidden": [8]}
    given = {**settings, "planner_kwargs": planner, "world_model_kwargs": model}
    twin = {"world_model": "pendulum"}
    task = tasks.Task("trials", "Pendulum-v1", 120, 120, 0, (0,), given, -1e9, None, {"max_episode_steps": 30}, "pets", twin)
    for variant in task.variants:
        settings = tasks.constructor_settings(task, variant)
        one = run.Run(task, variant, 0, settings, None, tmp_path, tmp_path / "checkpoints", "cpu")
        record = run.execute(one)
        assert [point["step"] for point in record["curve"]] == [30, 60, 90, 120]
        assert record["reached_at"] == 30
        assert record["finished"]
        assert all(len(point["returns"]) == 1 for point in record["curve"])
    longer = replace(task, name="longer", total_steps=130, eval_every=130)
    one = run.Run(
        longer, "pets", 0, tasks.constructor_settings(longer, "pets"), None, tmp_path, tmp_path / "checkpoints", "cpu"
    )
    record = run.execute(one)
    assert record["curve"][-1]["step"] == 120
    assert records.read_record(one.path)["finished"], "though the last episode is not over"
    records_of_both = report.load_records(tmp_path / "trials")
    text = report.task_section("trials", records_of_both)
    assert "the episodes of training. Reached: one episode of at least" in text
    assert "| variant | seed | in episode | best episode |" in text


# ---------------------------------------------------------------------------------------------------------------------- runs


class InterruptedRunError(Exception):
    """The stand-in for a killed process."""


def interrupted_after(step):
    def stop(record):
        if record["curve"][-1]["step"] == step:
            raise InterruptedRunError

    return stop


def test_every_algorithm_has_its_control_and_its_base():
    from sb3_contrib import TQC
    from stable_baselines3 import DQN

    from sb3_mbrl import Dyna, model_based

    cartpole, tqc = replace(TINY, algo="dyna"), replace(TINY, algo="mb_tqc")
    assert cartpole.variants == ("dyna", "model-off", "dqn")
    assert [agents.algorithm(cartpole, variant) for variant in cartpole.variants] == [Dyna, Dyna, DQN]
    assert [agents.algorithm(tqc, variant) for variant in tqc.variants] == [model_based(TQC), model_based(TQC), TQC]
    with pytest.raises(ValueError, match=r"tiny has no variant 'sac'; there are dyna, model-off, dqn"):
        tasks.constructor_settings(cartpole, "sac")
    jobs = run_all.plan_jobs([TINY, cartpole], None, Path("nowhere"), seeds=[0])
    assert [job.variant for job in jobs] == [*TINY.variants, *cartpole.variants]


@pytest.mark.parametrize("variant", TINY.variants)
def test_an_interrupted_run_resumes_and_ends_with_a_complete_curve(tmp_path, variant):
    one = tiny_run(tmp_path, variant)
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(20))
    half = records.read_record(one.path)
    assert (steps_of(half), half["finished"]) == ([0, 20], False)

    seen = []
    done = run.execute(one, on_evaluation=lambda record: seen.append(record["curve"][-1]["step"]))
    assert seen == [40, 60]
    assert records.read_record(one.path) == done
    assert steps_of(done) == [0, 20, 40, 60]
    assert done["curve"][:2] == half["curve"]
    assert (done["finished"], done["resumed_at"], done["reached_at"]) == (True, [20], 20)
    walls = [point["wall_s"] for point in done["curve"]]
    assert walls == sorted(walls)
    logged = done["curve"][-1]["logged"]
    assert ("model/holdout_error" in logged) == (variant == "mbpo")

    again = run.execute(one, on_evaluation=lambda record: pytest.fail("a finished run was run again"))
    assert again == done


def test_evaluations_after_the_last_checkpoint_are_done_again(tmp_path, monkeypatch):
    one = tiny_run(tmp_path, "model-off")
    save = run.save_checkpoint
    monkeypatch.setattr(
        run, "save_checkpoint", lambda agent, folder: save(agent, folder) if agent.num_timesteps < 40 else None
    )
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(40))
    assert steps_of(records.read_record(one.path)) == [0, 20, 40]
    done = run.execute(one)
    assert (steps_of(done), done["resumed_at"]) == ([0, 20, 40, 60], [20])


def test_without_a_checkpoint_a_run_begins_again_with_the_same_result(tmp_path):
    """Same seed, same run; and an interruption before the first checkpoint leaves no trace."""
    one = tiny_run(tmp_path, "model-off")
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(0))
    done = run.execute(one)
    assert done["resumed_at"] == []
    other = run.execute(tiny_run(tmp_path / "other", "model-off"))
    assert [point["returns"] for point in done["curve"]] == [point["returns"] for point in other["curve"]]


def test_a_checkpoint_ends_the_last_transition_by_a_time_limit_and_restores_the_streams(tmp_path):
    one = tiny_run(tmp_path, "model-off")
    drawn = {}

    def stop(record):
        if record["curve"][-1]["step"] == 40:
            states = run.random_states()
            drawn["next"] = (np.random.rand(), th.rand(1).item())
            run.set_random_states(states)
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=stop)
    checkpoint = run.newest_checkpoint(one.checkpoint_dir)
    agent = run.load_checkpoint(agents.algorithm(TINY, "mbpo"), checkpoint, gym.make("Pendulum-v1"), "cpu")
    assert (np.random.rand(), th.rand(1).item()) == drawn["next"]
    buffer = agent.replay_buffer
    assert buffer.pos == agent.num_timesteps == 40  # the latest transition is there
    # Step 30 is the end of an episode, by its time limit.
    assert buffer.dones[:40, 0].nonzero()[0].tolist() == buffer.timeouts[:40, 0].nonzero()[0].tolist() == [29, 39]


def test_a_resumed_run_says_that_the_library_changed(tmp_path, monkeypatch):
    one = tiny_run(tmp_path, "model-off")
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(20))
    before = run.source_digest()
    monkeypatch.setattr(run, "source_digest", lambda: "changed")
    assert run.execute(one)["sources"] == [before, "changed"]


def test_half_a_checkpoint_is_never_taken(tmp_path):
    (tmp_path / "step-000000020").mkdir()
    (tmp_path / "unfinished-000000040").mkdir()
    assert run.newest_checkpoint(tmp_path).name == "step-000000020"


def test_other_settings_are_refused_not_mixed(tmp_path):
    one = tiny_run(tmp_path, "model-off")
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(0))
    changed = replace(one, settings=dict(one.settings) | {"gradient_steps": 2})
    with pytest.raises(
        run.SettingsChangedError, match=r"settings was .*'gradient_steps': 1.* is .*'gradient_steps': 2.*--fresh"
    ):
        run.execute(changed)
    assert run.execute(changed, fresh=True)["settings"]["gradient_steps"] == 2


def test_a_record_names_neither_host_nor_folder(tmp_path):
    one = tiny_run(tmp_path, "sac")
    with pytest.raises(InterruptedRunError):
        run.execute(one, on_evaluation=interrupted_after(0))
    text = one.path.read_text()
    assert str(tmp_path) not in text
    assert str(records.HERE.parent) not in text
    assert run.platform.node() not in text or not run.platform.node()
