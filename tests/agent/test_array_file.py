"""Values in ``.npz`` files."""

import io
import zipfile

import numpy as np
import pytest
import torch as th

from sb3_mbrl.agent.array_file import is_array_file, read_array_file, write_array_file
from sb3_mbrl.agent.plain_values import NotPlainError
from sb3_mbrl.agent.zip_file import LARGE


def test_a_value_returns_and_numpy_reads_the_arrays(tmp_path):
    path = tmp_path / "x.npz"
    write_array_file(path, {"a": np.arange(3), "b": [th.ones(2)]}, "test")
    value = read_array_file(path, "test")
    assert value["a"].tolist() == [0, 1, 2]
    assert value["b"][0].tolist() == [1, 1]
    with np.load(path, allow_pickle=False) as stored:
        assert stored["array_0"].tolist() == [0, 1, 2]
    with path.open("rb") as file:
        assert is_array_file(file)
        assert file.tell() == 0


def test_what_can_only_be_pickled_leaves_no_file(tmp_path):
    with pytest.raises(NotPlainError):
        write_array_file(tmp_path / "x.npz", {"a": object()}, "test")
    assert not (tmp_path / "x.npz").exists()


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.npz"
    write_array_file(path, 1, "another kind")
    with pytest.raises(ValueError, match=r"x.npz is not a test that can be read: it holds no test"):
        read_array_file(path, "test")
    np.savez(path, json=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match=r"x.npz is not a test that can be read: .*allow_pickle=False"):
        read_array_file(path, "test")
    for content in (b"", b"PK\x03\x04 no zip", b"\x80\x05N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.npz is not a test that can be read"):
            read_array_file(path, "test")


def test_files_that_would_fill_the_memory(tmp_path):
    """A MemoryError without a name, after minutes of unpacking."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("json.npy", bytes(LARGE + 1))
    with pytest.raises(ValueError, match=r"x.npz is not a test that can be read: its entry 'json.npy' would take 64 MiB"):
        read_array_file(path, "test")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("json.npy", header.getvalue())
    with path.open("rb") as file, pytest.raises(ValueError, match=r"^.*/x.npz is not a test that can be read: Unable to allo"):
        read_array_file(file, "test")
