"""Files that are written whole or not at all."""

import os
import resource
import signal

import pytest

from sb3_mbrl import DynaQ
from sb3_mbrl.agent.whole_files import remove_leftovers, write_beside


def test_what_killed_processes_left_behind_is_removed(tmp_path):
    """Every kill during a save used to cost a buffer's worth of disk."""
    target = tmp_path / "buffer.pkl"
    for _ in range(2):
        if os.fork() == 0:
            write_beside(target, lambda path: (path.write_bytes(b"half"), os._exit(9)))
        os.wait()
    assert len(list(tmp_path.iterdir())) == 2
    for name in ("other.pkl", "buffer.zip", ".buffer.new.pkl", f".other.{'0' * 8}-1-{'0' * 8}.new.pkl"):
        (tmp_path / name).touch()
    write_beside(target, lambda path: path.write_bytes(b"whole"))
    others = {"other.pkl", "buffer.zip", ".buffer.new.pkl", f".other.{'0' * 8}-1-{'0' * 8}.new.pkl"}
    assert {path.name for path in tmp_path.iterdir()} == {"buffer.pkl", *others}


def test_what_another_process_is_writing_stays(tmp_path):
    def write(path):
        path.write_bytes(b"half")
        assert remove_leftovers(target) == []

    target = tmp_path / "buffer.pkl"
    elsewhere = tmp_path / f".buffer.{'0' * 8}-1-{'0' * 8}.new.pkl"  # of another machine, where process 1 may be alive
    elsewhere.touch()
    write_beside(target, write)
    assert elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    assert remove_leftovers(target) == [elsewhere.name]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_beside(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    """``save_replay_buffer`` used to write over the old file."""
    agent = DynaQ("QTablePolicy", "FrozenLake-v1", seed=0).learn(50)
    saves = {"agent.zip": agent.save, "buffer.pkl": agent.save_replay_buffer, "plain.npz": agent.save_plain_replay_buffer}
    for name, save in saves.items():
        save(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in ("agent.zip", "buffer.pkl")}
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (100, 1_000, 3_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for save in saves.values():
                with pytest.raises(OSError, match="File too large"):
                    save(tmp_path / next(name for name, one in saves.items() if one == save))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
