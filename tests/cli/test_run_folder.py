"""Folders of runs: checkpoints, kills, signals, full disks, two runs, and records of strangers."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys

import pytest
from stable_baselines3 import SAC

from sb3_mbrl import MBPO, DynaQ
from sb3_mbrl.checkpoints import CheckpointFolder, checkpoint_set
from sb3_mbrl.cli import main
from sb3_mbrl.cli.run_folder import Run, new_folder
from sb3_mbrl.cli.values import UserError
from tests.cli.commands import module

LAKE = ["train", "--algo", "dyna_q", "--env", "FrozenLake-v1", "--no-progress", "--eval-episodes", "0", "--output", "run"]


def resume(*args):
    return main(["train", "--resume", "--output", "run", "--no-progress", "--eval-episodes", "0", *args])


def steps():
    return [one.step for one in CheckpointFolder("run/checkpoints").sets()]


def test_checkpoints_are_saved_and_linked(here):
    assert main([*LAKE, "--steps", "95", "--save-every", "20"]) == 0
    assert steps() == [80, 95]
    links = {name: os.readlink(here / "run" / name) for name in ("model.zip", "replay_buffer.npz", "replay_buffer.pkl")}
    buffer = "checkpoints/latest/replay_buffer.npz"
    assert links == {"model.zip": "checkpoints/latest/model.zip", "replay_buffer.npz": buffer, "replay_buffer.pkl": buffer}
    agent = DynaQ.load(here / "run" / "model.zip", safe=True)
    agent.load_replay_buffer(here / "run" / "replay_buffer.npz", safe=True)
    assert (agent.num_timesteps, agent.replay_buffer.size()) == (95, 95)


def test_by_default_a_checkpoint_at_evaluations_and_at_the_end(here, monkeypatch):
    monkeypatch.setattr(CheckpointFolder, "_discard_old", lambda self: None)
    ends = ["--eval-every", "30", "--eval-episodes", "1", "--steps", "70"]
    assert main([*LAKE, *ends]) == 0
    assert steps()[0] == 0
    assert steps()[-1] == 70
    assert set(steps()) <= {0, 30, 60, 70}  # not at each, if a save takes more than a twentieth of the time between them
    monkeypatch.setattr("sb3_mbrl.cli.train._SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("sb3_mbrl.callbacks.PAUSE", 0)
    assert resume("--steps", "75") == 0
    assert steps()[-5:] == [71, 72, 73, 74, 75]


def child(work):
    """Run in a process of its own; return its exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_run_loses_at_most_one_interval(here, kills):
    """Nothing was saved before the end."""
    generator, before, arguments = random.Random(0), -1, ["--steps", "1000000", "--save-every", "20"]
    stored = mmap.mmap(-1, 8)  # shared with the processes that are killed
    learn = DynaQ._store_transition
    assert main([*LAKE[:-1], "another", "--steps", "21"]) == 0  # so that everything is imported

    for number in range(kills):
        began, delay = bool(CheckpointFolder("run/checkpoints").sets()), generator.uniform(0.01, 0.3)

        def work(delay=delay, began=began, at_once=number % 3 == 1):
            def noting(one, *args, **kwargs):
                if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
                    signal.setitimer(signal.ITIMER_REAL, delay)  # the system ends the process then, wherever it is
                learn(one, *args, **kwargs)
                stored[:] = one.num_timesteps.to_bytes(8, "big")

            DynaQ._store_transition = noting
            signal.setitimer(signal.ITIMER_REAL, delay if at_once else 0)
            return resume(*arguments) if began else main([*LAKE, *arguments])

        assert child(work) == -signal.SIGALRM
        found = CheckpointFolder("run/checkpoints").newest()
        assert found.damaged == []
        if found.chosen is None:
            assert not began
            continue
        step = found.chosen.step
        assert before <= step <= int.from_bytes(stored, "big") <= step + 20
        agent = found.chosen.load(DynaQ, safe=True)
        assert agent.num_timesteps == step == agent.tabular.clock
        buffer = agent.replay_buffer
        assert buffer.pos == step % buffer.buffer_size
        before = step
    assert before > 20


KILLING = """
    import os, signal
    from sb3_mbrl import MBPO, hookimpl

    @hookimpl
    def sb3_mbrl_before_model_fit(agent):
        if FIRST:
            os.kill(os.getpid(), FIRST)

    @hookimpl
    def sb3_mbrl_on_save(agent, extra):
        if agent.num_timesteps and AGAIN:
            os.kill(os.getpid(), AGAIN)
"""


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP, 0),
        (signal.SIGUSR1, signal.SIGHUP),
        (0, signal.SIGTERM),
    ],
)
def test_signals_once_and_twice_and_during_the_save(here, first, again):
    """A second SIGTERM used to end the save, and a closed terminal the run, without a file."""
    plugin = module(here, "killing", KILLING.replace("FIRST", str(int(first))).replace("AGAIN", str(int(again))))
    make = ["train", "--env", "Pendulum-v1", "--no-preset", "--no-progress", "--eval-episodes", "0", "--device", "cpu"]
    small = ["--steps", "45", "--world-model-kwargs", "members=2", "elites=1", "hidden=[8]", "--plugin", plugin]
    settings = [
        "--set",
        "gradient_steps=1",
        "learning_starts=40",
        "policy_kwargs={'net_arch':[8]}",
        "fit_kwargs={'max_batches':3}",
    ]

    def work():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        return main([*make, *small, *settings, "--output", "run"])

    assert child(work) == (130 if first else 0)
    found = CheckpointFolder("run/checkpoints").newest()
    assert found.chosen.step == (41 if first else 45)
    sys.path_importer_cache.clear()
    agent = found.chosen.load(MBPO, safe=True, plugins=[__import__(plugin)] if first == 0 else ())
    assert agent.num_timesteps == agent.replay_buffer.size()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(here, capsys):
    assert main([*LAKE, "--steps", "60", "--save-every", "40"]) == 0
    newest = CheckpointFolder("run/checkpoints").sets()[-1]
    content = bytearray(newest.model.read_bytes())
    content[len(content) // 2] ^= 4
    newest.model.write_bytes(content)
    assert resume() == 0
    out = capsys.readouterr().out
    assert f"Damaged: {newest.model} is damaged: its checksum is not the one that manifest.json lists" in out
    assert "Using the newest checkpoint that is intact: run/checkpoints/000002-step-40" in out
    assert "Training dyna_q on FrozenLake-v1: 20 real steps" in out
    for one in CheckpointFolder("run/checkpoints").sets():
        one.model.write_bytes(b"")
    for command in (["evaluate", "run"], ["train", "--resume", "--output", "run", "--steps", "100", "--no-progress"]):
        assert main(command) == 2
        assert "no checkpoint in run/checkpoints is intact: " in capsys.readouterr().err


def test_a_full_disk(here, capsys, monkeypatch):
    """Hours of training ended with a traceback, and nothing was saved."""
    assert main([*LAKE, "--steps", "30"]) == 0
    capsys.readouterr()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_buffer", full)
    assert resume("--steps", "50", "--save-every", "10") == 2
    error = capsys.readouterr().err
    assert "was saved without its replay buffer (No space left on device): free some space. The last complete one is" in error
    assert "trained for 50 real steps, but run/checkpoints/" in error
    assert "was saved without its replay buffer (No space left on device): free some space" in error
    assert steps() == [0, 30, 50]
    assert DynaQ.load("run/model.zip").num_timesteps == 50
    assert not os.path.lexists("run/replay_buffer.npz"), "it would not fit the agent"
    monkeypatch.undo()
    os.chdir(here)
    assert resume("--steps", "60") == 0
    assert "Using run/checkpoints/000002-step-30, the newest checkpoint with a replay buffer" in capsys.readouterr().out
    assert steps()[-1] == 60


def test_a_disk_with_room_for_the_real_rows(here, capsys, monkeypatch):
    make = ["train", "--env", "Pendulum-v1", "--no-preset", "--no-progress", "--eval-episodes", "0", "--device", "cpu"]
    small = ["--world-model-kwargs", "members=2", "elites=1", "hidden=[8]", "--set", "gradient_steps=1", "learning_starts=40"]
    assert main([*make, *small, "policy_kwargs={'net_arch':[8]}", "--steps", "60", "--output", "run"]) == 0
    newest = CheckpointFolder("run/checkpoints").newest().chosen
    assert newest.load(MBPO).imagined is not None
    write = checkpoint_set._write_buffer

    def without_room(agent, folder, pickled, imagined):
        if imagined:
            raise OSError(28, "No space left on device")
        write(agent, folder, pickled, imagined)

    monkeypatch.setattr(checkpoint_set, "_write_buffer", without_room)
    assert resume("--steps", "70", "--save-every", "0") == 0
    words = "was saved without its imagined rows (No space left on device): free some space. They are imagined again"
    assert words in capsys.readouterr().err
    newest = CheckpointFolder("run/checkpoints").newest().chosen
    assert (newest.step, set(newest.lacks)) == (70, {"imagined_rows"})
    loaded = newest.load(MBPO, safe=True)
    assert (loaded.replay_buffer.size(), loaded.imagined) == (70, None)
    assert resume("--steps", "80") == 0
    assert "This checkpoint was saved without its imagined rows" in capsys.readouterr().out


def test_without_any_buffer_training_continues_with_an_empty_one(here, capsys, monkeypatch):
    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_buffer", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert main([*LAKE, "--steps", "30"]) == 2
    assert resume("--steps", "50") == 2
    out = capsys.readouterr().out
    assert "training continues with an empty one" in out
    assert "Training dyna_q on FrozenLake-v1: 20 real steps" in out, "the checkpoint before the first step has a buffer"


def test_two_runs_never_share_a_folder(here, capsys):
    """The folder was chosen when a run began, but not reserved."""
    folders = [new_folder("mbpo", "Pendulum-v1") for _ in range(3)]
    assert [folder.name for folder in folders] == ["Pendulum-v1_1", "Pendulum-v1_2", "Pendulum-v1_3"]
    (here / "run" / "checkpoints").mkdir(parents=True)
    program = "import filelock, sys; one = filelock.FileLock(sys.argv[1]); one.acquire(); print('locked', flush=True); input()"
    lock = here / "run" / "checkpoints" / ".lock"
    with subprocess.Popen([sys.executable, "-c", program, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        for command in ([*LAKE, "--steps", "10"], ["train", "--resume", "--output", "run", "--no-progress"]):
            Run("dyna_q", "FrozenLake-v1", 10, 0, 1).write(here / "run")
            assert main(command) == 2
            assert "run is in use by another run: wait for its end, or choose another --output" in capsys.readouterr().err
        other.kill()


def test_a_run_of_an_earlier_version_is_continued(here):
    """Which had two files, and no checkpoints."""
    agent = DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(20)
    Run("dyna_q", "FrozenLake-v1", 30, 0, 1).write(here / "run")
    agent.save("run/model.zip")
    agent.save_replay_buffer("run/replay_buffer.pkl")
    assert main([*LAKE, "--steps", "50"]) == 2
    assert resume() == 0
    assert steps() == [20, 30]
    assert (here / "run" / "model.zip").is_symlink()


def test_what_a_run_that_was_killed_at_its_begin_says(here, capsys):
    Run("dyna_q", "FrozenLake-v1", 30, 0, 1).write(here / "run")
    assert resume() == 2
    assert "nothing was saved yet in run; start the run again, without --resume" in capsys.readouterr().err
    assert main([*LAKE, "--steps", "10"]) == 0


# ---- records


GOOD = {"algo": "dyna_q", "env_id": "FrozenLake-v1", "steps": 30, "seed": 0, "n_envs": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"env_id": ["x"]},
        {"env_id": ""},
        {"algo": 3},
        {"n_envs": -1},
        {"n_envs": 0},
        {"n_envs": True},
        {"n_envs": 10**9},
        {"n_envs": 2.0},
        {"seed": "x"},
        {"seed": -1},
        {"steps": float("nan")},
        {"steps": float("inf")},
        {"steps": -5},
        {"steps": None},
        {"plugins": "os"},
        {"plugins": [5]},
        {"plugins": ["os; import this"]},
        {"env_kwargs": []},
        {"env_kwargs": None},
        {"arguments": 5},
        {"tensorboard": 5},
        {"normalize": "everything"},
        {"unknown": 1},
        "[" * 100_000,
        "[]",
        "5",
        "",
        "{",
        b"\xff\xfe\x00",
        '{"algo": "dyna_q"}',
    ],
)
def test_a_damaged_record_is_one_line(here, capsys, change):
    """Values of wrong types gave tracebacks, and NaN steps a success."""
    if isinstance(change, dict):
        change = json.dumps({**GOOD, **change})
    (here / "run").mkdir()
    (here / "run" / "run.json").write_bytes(change if isinstance(change, bytes) else change.encode())
    (here / "run" / "model.zip").touch()
    for command in (["train", "--resume", "--output", "run"], ["evaluate", "run"], ["plot", "plan", "run"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "run.json is not the record of a run: " in error
        assert len(error.splitlines()) == 1


def test_every_flipped_bit_of_a_record_is_noticed(here):
    Run(**GOOD).write(here / "run")
    path, generator = here / "run" / "run.json", random.Random(0)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        place = generator.randrange(whole.index(b'"seal"'))
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            changed = Run.read(here / "run") != Run(**GOOD)
        except UserError:
            changed = False
        assert not changed


def test_a_record_that_was_changed_on_purpose(here, capsys):
    Run(**GOOD).write(here / "run")
    path = here / "run" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "steps": 40}))
    assert resume() == 2
    assert "If you changed it on purpose, remove the line with the checksum" in capsys.readouterr().err
    del record["checksum"]
    path.write_text(json.dumps({**record, "steps": 40}))
    assert Run.read(here / "run").steps == 40


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"plugins": ["a_stranger"]}, ["--plugin", "a_stranger"]),
        ({"env_id": "a_stranger:FrozenLake-v1"}, ["--env", "a_stranger:FrozenLake-v1"]),
        ({"algo": "a_stranger:DynaQ"}, ["--algo", "a_stranger:DynaQ"]),
    ],
)
def test_a_record_of_a_stranger_imports_nothing(here, capsys, monkeypatch, change, option):
    mark = here / "mark"
    source = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nfrom sb3_mbrl import DynaQ, hookimpl\n"
    hook = "@hookimpl\ndef sb3_mbrl_on_load(agent, extra): pass\n"
    (here / "a_stranger.py").write_text(source + hook)
    agent = DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(20)
    CheckpointFolder(here / "run" / "checkpoints").save(agent)
    CheckpointFolder(here / "run" / "checkpoints").release()
    path = here / "run" / "run.json"
    path.write_text(json.dumps({**GOOD, **change, "seal": "0" * 64}))
    commands = (["train", "--resume", "--output", "run", "--no-progress", "--eval-episodes", "0"], ["evaluate", "run"])
    for command in commands:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "run.json was not written by you, and names the module 'a_stranger', which would be imported" in error
        assert f"name it yourself: {' '.join(option)}" in error
    assert not mark.exists()
    # Named on the command line, and in a record of one's own.
    assert main([*commands[1], *option, "--episodes", "1"]) == 0
    assert mark.exists()
    path.write_text(json.dumps(GOOD))
    Run(**{**GOOD, **change}).write(here / "run")
    assert main([*commands[1], "--episodes", "1"]) == 0


def test_safe_and_trusted(here, capsys):
    assert main([*LAKE, "--steps", "20"]) == 0
    assert main(["evaluate", "run", "--safe", "--episodes", "1"]) == 0
    assert resume("--safe", "--steps", "30") == 0
    DynaQ.load("run/model.zip").save("pickled.zip")
    capsys.readouterr()
    assert main(["evaluate", "pickled.zip", "--env", "FrozenLake-v1", "--safe"]) == 2
    assert "pickled.zip holds pickles" in capsys.readouterr().err
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save("sac.zip")
    assert main(["evaluate", "sac.zip", "--env", "Pendulum-v1", "--safe"]) == 2
    assert "--safe: sac.zip is a file of Stable-Baselines3, which is a pickle" in capsys.readouterr().err
    (here / "vecnormalize.pkl").touch()
    DynaQ.load("pickled.zip").save("plain.zip", safe=True)
    assert main(["evaluate", "plain.zip", "--env", "FrozenLake-v1", "--safe"]) == 2
    assert "--safe: vecnormalize.pkl is a file of Stable-Baselines3" in capsys.readouterr().err


def test_an_own_part_is_trusted_when_the_run_is_continued(here, capsys):
    source = "from sb3_mbrl.models.ensemble import EnsembleModel\nclass Mine(EnsembleModel):\n    pass\n"
    (here / "of_mine.py").write_text(source)
    make = ["train", "--env", "Pendulum-v1", "--no-preset", "--no-progress", "--eval-episodes", "0", "--device", "cpu"]
    assert main([*make, "--world-model", "of_mine:Mine", "--steps", "10", "--output", "run"]) == 0
    del sys.modules["of_mine"]
    assert resume("--steps", "20") == 0
    path = here / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seal": None}))
    del sys.modules["of_mine"]
    assert resume("--steps", "30") == 2
    assert "is of_mine:Mine, which is neither registered" in capsys.readouterr().err
    assert resume("--steps", "30", "--trust", "of_mine") == 0
