"""``sb3-mbrl train`` and ``evaluate``: what runs leave behind, Ctrl-C, going on."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_mbrl import MBPO, PETS
from sb3_mbrl.cli import main
from tests.cli.commands import SMALL, module, rows, train


def test_train_saves_logs_and_evaluates(here, capsys):
    assert train("--steps", "120", "--seed", "3", "--eval-every", "60") == 0
    out = capsys.readouterr().out
    folder = here / "runs" / "mbpo" / "Pendulum-v1_1"
    assert "Using the preset of mbpo for Pendulum-v1" in out
    assert "World model: ensemble (EnsembleModel)" in out
    assert "World model on held-out rows: squared error" in out
    assert "Pendulum-v1, 1 episodes: mean return -" in out

    agent = MBPO.load(folder / "model.zip", device="cpu")
    assert (agent.num_timesteps, agent.seed, agent.learning_rate, agent.gradient_steps) == (
        120,
        3,
        1e-3,
        1,
    )  # 1e-3: the preset's
    assert agent.policy_kwargs["net_arch"] == [64, 64]
    assert agent.world_model.n_members == 2
    agent.load_replay_buffer(folder / "replay_buffer.pkl")
    assert agent.replay_buffer.size() == 120
    # Logged although no episode ended: the last figures are not lost.
    assert 0 < float([row["model/vs_trivial"] for row in rows(folder) if row["model/vs_trivial"]][-1]) <= 2
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [60, 120]
    assert (folder / "best_model.zip").is_file()
    assert not [path for path in folder.iterdir() if ".new" in path.name]

    # The folder says which environment it was, and evaluating is repeatable.
    texts = []
    for _ in range(2):
        assert main(["evaluate", str(folder), "--episodes", "2", "--seed", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "Pendulum-v1, 2 episodes" in texts[0]


def test_same_seed_same_run(here):
    for name in ("a", "b"):
        assert train("--steps", "70", "--output", name, "--eval-episodes", "0") == 0
    a, b = (MBPO.load(here / name / "model.zip", device="cpu").policy.state_dict() for name in "ab")
    assert all(th.equal(a[key], b[key]) for key in a)


def test_the_command_line_comes_on_top_of_the_preset(here):
    assert (
        train("--steps", "10", "--world-model", "mlp", "--world-model-kwargs", "hidden=[8]", "--output", "run") == 2
    )  # members=2
    args = ["train", "--env", "Pendulum-v1", "--no-progress", "--eval-episodes", "0", "--steps", "10", "--output", "run"]
    assert main([*args, "--world-model", "mlp", "--set", "buffer_size=1e2", "tau=0.5"]) == 0
    agent = MBPO.load(here / "run" / "model.zip", device="cpu")
    assert type(agent.world_model).__name__ == "MLPModel"
    assert agent.world_model_kwargs == {}, "the preset's were for the ensemble"
    assert (agent.buffer_size, agent.tau, agent.learning_rate) == (100, 0.5, 1e-3)
    assert json.loads((here / "run" / "run.json").read_text())["arguments"]["tau"] == 0.5


def test_no_preset_and_no_model(here, capsys):
    assert main(["train", *SMALL, "--no-preset", "--world-model", "none", "--steps", "10", "--output", "run"]) == 0
    assert "World model: off" in capsys.readouterr().out
    agent = MBPO.load(here / "run" / "model.zip", device="cpu")
    assert agent.world_model is None
    assert agent.learning_rate == 3e-4


def test_resume_goes_on_where_it_was(here, capsys):
    assert train("--steps", "60") == 0
    folder = here / "runs" / "mbpo" / "Pendulum-v1_1"
    before = MBPO.load(folder / "model.zip", device="cpu")
    assert main(["train", "--resume", "--env", "Pendulum-v1", "--steps", "110", "--no-progress", "--eval-episodes", "0"]) == 0
    assert "50 real steps" in capsys.readouterr().out
    after = MBPO.load(folder / "model.zip", device="cpu")
    after.load_replay_buffer(folder / "replay_buffer.pkl")
    assert (after.num_timesteps, after.replay_buffer.size()) == (110, 110)
    assert after._n_updates == before._n_updates + 50
    assert after.world_model.n_fits > before.world_model.n_fits
    assert rows(folder), "the log of the first part is still there"
    assert rows(folder, "progress_from_60.csv")
    assert main(["train", "--resume", "--output", str(folder), "--no-progress"]) == 2
    assert "has its 110 real steps already; give more with --steps" in capsys.readouterr().err


INTERRUPT = """
    from sb3_mbrl import hookimpl

    fits = 0

    @hookimpl
    def sb3_mbrl_before_model_fit(agent):
        global fits
        fits += 1
        if fits == 2:
            {}
"""


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_stopping_loses_nothing(here, capsys, how):
    plugin = module(here, "interrupting_" + how[:5], INTERRUPT.format(how))
    before = signal.getsignal(signal.SIGTERM)
    assert train("--steps", "120", "--plugin", plugin, "--output", "run with space") == 130
    assert signal.getsignal(signal.SIGTERM) is before
    out = capsys.readouterr().out
    # The first fit is at 51 (learning starts after 50 steps), the second at 100.
    assert "Stopped after 100 real steps; all of them are saved" in out
    assert "sb3-mbrl train --resume --output 'run with space'" in out
    assert main(["train", "--resume", "--output", "run with space", "--no-progress", "--eval-episodes", "0"]) == 0
    agent = MBPO.load("run with space/model.zip", device="cpu", plugins=[sys.modules[plugin]])
    agent.load_replay_buffer("run with space/replay_buffer.pkl")
    assert (agent.num_timesteps, agent.replay_buffer.size()) == (120, 120)


def test_a_failing_environment_loses_nothing(here, capsys):
    module(
        here,
        "failing_env",
        """
        import gymnasium as gym
        from gymnasium.envs.classic_control import PendulumEnv

        class Failing(PendulumEnv):
            steps = 0

            def step(self, action):
                Failing.steps += 1
                obs, *rest = super().step(action)
                return (obs * float("nan") if Failing.steps == 80 else obs), *rest

        gym.register("Failing-v0", Failing, max_episode_steps=200)
        """,
    )
    with pytest.raises(ValueError, match="Environment 0 returned NaN or infinity in its observation"):
        train("--env", "failing_env:Failing-v0", "--steps", "120", "--output", "run")
    assert "Failed after 80 real steps" in capsys.readouterr().out
    agent = MBPO.load("run/model.zip", device="cpu")
    agent.load_replay_buffer("run/replay_buffer.pkl")
    assert agent.replay_buffer.size() == 79, "the bad transition was not stored"


def test_an_unfinished_save_leaves_the_old_one(here, monkeypatch, capsys):
    assert train("--steps", "10", "--output", "run", "--eval-episodes", "0") == 0
    old, before = (here / "run" / "model.zip").read_bytes(), signal.getsignal(signal.SIGINT)

    def half(self, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(MBPO, "save", half)
    assert main(["train", "--resume", "--output", "run", "--steps", "20", "--no-progress", "--eval-episodes", "0"]) == 2
    error = capsys.readouterr().err
    assert "trained for 20 real steps, but the agent could not be saved (disk full): free some space" in error
    assert "Untouched: the last good checkpoint is run/checkpoints/000002-step-10" in error
    assert len(error.splitlines()) == 1
    assert (here / "run" / "model.zip").read_bytes() == old
    assert signal.getsignal(signal.SIGINT) is before


def test_saved_transitions_fit_the_model_before_the_first_step(here, capsys):
    recorder = SAC("MlpPolicy", "Pendulum-v1", buffer_size=200, learning_starts=1000, device="cpu", seed=0)
    recorder.learn(150)
    recorder.save_replay_buffer("data.pkl")
    plugin = module(
        here,
        "noting_plugin",
        """
        from sb3_mbrl import hookimpl

        fits = []

        @hookimpl
        def sb3_mbrl_after_model_fit(agent, metrics):
            fits.append((agent.num_timesteps, metrics["rows"]))
        """,
    )
    assert train("--steps", "20", "--load-replay-buffer", "data.pkl", "--plugin", plugin, "--output", "run") == 0
    assert "Loaded 150 real transitions from data.pkl" in capsys.readouterr().out
    assert sys.modules[plugin].fits[0] == (0, 150)


def test_a_plugins_model_by_name(here, capsys):
    plugin = module(
        here,
        "offering_plugin",
        """
        from sb3_mbrl import hookimpl
        from sb3_mbrl.contracts import WorldModelSpec

        @hookimpl
        def sb3_mbrl_world_models():
            return [WorldModelSpec(name="mine", factory="sb3_mbrl.models.ensemble:EnsembleModel", summary="of my own")]
        """,
    )
    assert train("--steps", "10", "--plugin", plugin, "--world-model", "mine", "--output", "run") == 0
    assert "World model: mine (EnsembleModel)" in capsys.readouterr().out
    assert main(["evaluate", "run", "--episodes", "1"]) == 0, "run.json knows the plugin"
    assert main(["plugins", "--plugin", plugin]) == 0
    assert "mine " in (out := capsys.readouterr().out)
    assert "of my own" in out


def test_several_environments(here):
    assert train("--steps", "80", "--n-envs", "4", "--output", "run") == 0
    agent = MBPO.load("run/model.zip", device="cpu")
    agent.load_replay_buffer("run/replay_buffer.pkl")
    assert (agent.num_timesteps, agent.replay_buffer.n_envs, agent.replay_buffer.pos) == (80, 4, 20)


def test_a_tabular_agent_trains_with_its_own_policy(here, capsys):
    """``MlpPolicy``, the guess for other classes, is none of DynaQ's."""
    argv = ["train", "--algo", "dyna_q", "--env", "DynaMaze-v0", "--steps", "60", "--no-progress", "--eval-episodes", "0"]
    assert main([*argv, "--output", "maze"]) == 0
    assert (here / "maze" / "model.zip").is_file()


def test_a_generated_class_by_its_name(here, capsys):
    argv = ["train", "--algo", "mb_td3", "--env", "Pendulum-v1", "--steps", "60", "--no-progress", "--eval-episodes", "1"]
    assert main([*argv, "--set", "learning_starts=50", "--world-model", "pendulum", "--output", "run"]) == 0
    assert main(["evaluate", "run", "--episodes", "1"]) == 0
    assert "mean return" in capsys.readouterr().out
    shutil.copy(here / "run" / "model.zip", here / "alone.zip")
    assert main(["evaluate", "alone.zip", "--env", "Pendulum-v1", "--algo", "mbpo"]) == 2
    error = capsys.readouterr().err
    assert "load it with model_based(TD3).load(path)" in error
    assert "Here: --algo mb_td3" in error
    # The zip alone says which algorithm it is of.
    assert main(["evaluate", "alone.zip", "--env", "Pendulum-v1", "--episodes", "1"]) == 0


def test_an_agent_of_a_users_subclass_is_loaded_by_the_algorithm_of_its_base_class(here, capsys):
    class Own(MBPO):
        pass

    Own("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save("own.zip")
    assert main(["evaluate", "own.zip", "--env", "Pendulum-v1", "--episodes", "1"]) == 0
    assert main(["evaluate", "own.zip", "--env", "Pendulum-v1", "--algo", "dyna"]) == 2
    assert "Here: --algo mbpo" in capsys.readouterr().err


def test_a_run_that_learned_nothing_says_so(here, capsys):
    assert train("--steps", "50") == 0
    assert "Nothing was learned yet: the first 50 steps are random ones" in capsys.readouterr().out
    assert main(["train", "--resume", "--env", "Pendulum-v1", "--steps", "60", "--no-progress", "--eval-episodes", "0"]) == 0
    assert "Nothing was learned" not in capsys.readouterr().out


def test_tensorboard_keeps_algorithms_apart_and_goes_on_with_the_run(here):
    pytest.importorskip("tensorboard")
    assert train("--steps", "20", "--tensorboard", "tb") == 0
    logs = here / "tb" / "mbpo" / "Pendulum-v1_1"
    assert len(list(logs.glob("events*"))) == 1
    assert main(["train", "--resume", "--env", "Pendulum-v1", "--steps", "40", "--no-progress", "--eval-episodes", "0"]) == 0
    assert len(list(logs.glob("events*"))) == 2


def test_presets_by_name_and_the_planner(here, capsys):
    argv = ["train", "--algo", "pets", "--env", "Pendulum-v1", "--steps", "5", "--eval-episodes", "0", "--no-progress"]
    assert main([*argv, "--preset", "random-shooting", "--planner-kwargs", "population=10", "--output", "a"]) == 0
    assert "Using the preset of pets for random-shooting" in capsys.readouterr().out
    agent = PETS.load(here / "a" / "model.zip", device="cpu")
    assert (type(agent.planner).__name__, agent.planner.population, agent.planner.horizon) == ("RandomShooting", 10, 15)
    assert main([*argv, "--preset", "published", "--planner", "mppi", "--output", "b"]) == 0
    assert "The preset's planner_kwargs are for another planner: left out" in capsys.readouterr().out
    assert type(PETS.load(here / "b" / "model.zip", device="cpu").planner).__name__ == "MPPI"
    assert main([*argv, "--preset", "publisht", "--output", "c"]) == 2
    assert "Did you mean 'published'?" in capsys.readouterr().err


def test_a_buffer_from_elsewhere_is_refused(capsys):
    other = SAC("MlpPolicy", "MountainCarContinuous-v0", buffer_size=10, device="cpu")
    other.save_replay_buffer("other.pkl")
    assert train("--steps", "10", "--load-replay-buffer", "other.pkl") == 2
    assert (
        "other.pkl does not fit this run: The replay buffer was recorded with observation_space Box" in capsys.readouterr().err
    )
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save_replay_buffer("single.pkl")
    assert train("--steps", "10", "--load-replay-buffer", "single.pkl", "--n-envs", "2") == 2
    assert "recorded with n_envs 1; this agent has 2" in capsys.readouterr().err


def test_a_run_is_not_overwritten(here, capsys):
    assert train("--steps", "10", "--output", "run") == 0
    before = (here / "run" / "model.zip").stat().st_mtime_ns
    assert train("--steps", "10", "--output", "run") == 2
    assert "run holds a run already: continue it with --resume" in capsys.readouterr().err
    assert (here / "run" / "model.zip").stat().st_mtime_ns == before


def test_another_imagination_leaves_the_presets_settings_out(here, capsys):
    source = """
        from sb3_mbrl.imagination import BranchedRollouts

        class Mine(BranchedRollouts):
            pass
        """
    module(here, "my_rollouts", source)
    args = ["train", "--env", "Pendulum-v1", "--no-progress", "--eval-episodes", "0", "--steps", "10", "--device", "cpu"]
    assert main([*args, "--imagination", "my_rollouts:Mine", "--imagination-kwargs", "horizon=2", "--output", "run"]) == 0
    assert "The preset's imagination_kwargs are for another imagination: left out" in capsys.readouterr().out
    agent = MBPO.load(here / "run" / "model.zip", device="cpu")
    assert (type(agent.imagination).__name__, agent.imagination_kwargs) == ("Mine", {"horizon": 2})
    assert main([*args, "--imagination", "branched", "--output", "same"]) == 0
    assert MBPO.load(here / "same" / "model.zip", device="cpu").imagination_kwargs["horizon"] == 10
    assert main([*args, "--imagination", "braned", "--output", "wrong"]) == 2
    assert "Did you mean 'branched'?" in capsys.readouterr().err
