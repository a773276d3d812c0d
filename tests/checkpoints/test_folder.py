"""Folders of checkpoints: killed saves, damaged files, full disks, two runs."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from sb3_mbrl import DynaQ
from sb3_mbrl.checkpoints import CheckpointFolder, FolderInUseError
from sb3_mbrl.checkpoints import folder as module


@pytest.fixture
def agent():
    return DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(5)


@pytest.fixture
def folder(tmp_path):
    folder = CheckpointFolder(tmp_path / "sets")
    yield folder
    folder.release()


def steps(folder):
    return [one.step for one in folder.sets()]


def further(agent, steps):
    return agent.learn(steps, reset_num_timesteps=False)


def test_the_newest_two_are_kept(folder, agent):
    assert folder.newest() == (None, [], None)
    for _ in range(4):
        folder.save(further(agent, 10))
    assert steps(folder) == [35, 45]
    assert [one.path.name for one in folder.sets()] == ["000003-step-35", "000004-step-45"]
    assert os.readlink(folder.path / "latest") == "000004-step-45"
    assert {entry.name for entry in folder.path.iterdir()} == {".lock", "latest", "000003-step-35", "000004-step-45"}
    assert folder.newest() == (folder.sets()[1], [], None)
    with pytest.raises(ValueError, match="keep=0"):
        CheckpointFolder(folder.path, keep=0)


def test_a_damaged_one_is_noticed_and_the_one_before_is_used(folder, agent):
    folder.save(agent)
    folder.save(further(agent, 10))
    first, second = folder.sets()
    (second.path / "replay_buffer.npz").unlink()
    found = folder.newest()
    assert found.chosen == first
    assert found.damaged == [f"{second.path / 'replay_buffer.npz'} is missing"]
    (first.path / "model.zip").write_bytes(b"")
    found = folder.newest()
    assert found.chosen is None
    assert [str(first.path / "model.zip") in sentence for sentence in found.damaged] == [False, True]
    # The next one is numbered after the damaged ones, which then go.
    folder.save(further(agent, 10))
    assert folder.newest().chosen.path.name == "000003-step-25"
    assert folder.newest().damaged == []


@pytest.mark.parametrize("place", ["_write_agent", "_write_buffer", "write_manifest"])
def test_a_save_that_is_killed(place, folder, agent):
    """Killed between the agent and its buffer, the next run used to continue with files of two moments."""
    folder.save(agent)
    folder.release()
    if os.fork() == 0:
        import sb3_mbrl.checkpoints.checkpoint_set as written

        setattr(written, place, lambda *_: os._exit(9))
        CheckpointFolder(folder.path).save(further(agent, 10))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
    assert steps(folder) == [5]
    assert folder.newest() == (folder.sets()[0], [], None)
    left = folder.acquire()
    assert len(left) == 1
    assert left[0].startswith(".unfinished-")
    assert not [entry for entry in folder.path.iterdir() if "unfinished" in entry.name]


def test_a_removal_that_is_killed(folder, agent, monkeypatch):
    """Half a checkpoint does not look like one."""
    monkeypatch.setattr(module, "_remove", lambda path: None)
    for _ in range(3):
        folder.save(further(agent, 10))
    assert steps(folder) == [25, 35]
    folder.release()
    monkeypatch.undo()
    assert len(folder.acquire()) == 1


def test_a_full_disk(folder, agent, monkeypatch):
    """Once more without the buffer; the last complete one stays, whatever follows."""
    folder.save(agent)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_buffer", full)
    for _ in range(3):
        saved = folder.save(further(agent, 10))
    assert saved.lacks == {"replay_buffer": "No space left on device"}
    assert saved.load(DynaQ).num_timesteps == 35
    assert steps(folder) == [5, 35]
    found = folder.newest()
    assert (found.chosen.step, found.incomplete.step) == (5, 35)
    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_agent", full)
    with pytest.raises(OSError, match="No space left on device"):
        folder.save(further(agent, 10))
    assert steps(folder) == [5, 35]
    monkeypatch.undo()
    folder.save(agent)
    assert steps(folder) == [5, 45], "the one without its buffer is of no use any more"
    shutil.rmtree(folder.sets()[0].path)
    assert folder.newest().chosen.step == 45


def test_only_one_without_its_buffer(folder, agent, monkeypatch):
    monkeypatch.setattr("sb3_mbrl.checkpoints.checkpoint_set._write_buffer", lambda *_: (_ for _ in ()).throw(OSError("full")))
    folder.save(agent)
    found = folder.newest()
    assert (found.chosen.lacks, found.incomplete) == ({"replay_buffer": "full"}, None)
    assert found.chosen.load(DynaQ).replay_buffer.size() == 0


def test_a_signal_during_the_save_waits(folder, agent, monkeypatch):
    import sb3_mbrl.checkpoints.checkpoint_set as written

    write = written._write_buffer
    monkeypatch.setattr(written, "_write_buffer", lambda *args: (signal.raise_signal(signal.SIGINT), write(*args)))
    with pytest.raises(KeyboardInterrupt):
        folder.save(agent)
    assert folder.newest().chosen.step == 5


def test_two_runs_never_share_a_folder(folder):
    folder.acquire()
    folder.acquire()  # the same process: after an exception in a notebook
    folder.release()
    program = "import filelock, sys; one = filelock.FileLock(sys.argv[1]); one.acquire(); print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, folder.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(FolderInUseError, match=r"sets is in use by another run: wait for its end, or use another folder"):
            folder.acquire()
        other.kill()  # the system takes the lock back
    folder.acquire()


def test_without_links(folder, agent, monkeypatch):
    """On Windows, links need a privilege."""

    def refused(*args, **kwargs):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    folder.save(agent)
    assert {entry.name for entry in folder.path.iterdir()} == {".lock", "000001-step-5"}
