"""Checksums of the files of a folder."""

import json
import random

import pytest

from sb3_mbrl.agent.manifest import MANIFEST, DamagedError, _checksum_of, _text, verify, verify_file, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(200)))
    (tmp_path / "b.txt").write_text("text")
    write_manifest(tmp_path, {"step": 5, "lacks": {}})
    return tmp_path


def test_facts_are_kept(folder):
    manifest = verify(folder)
    assert manifest["step"] == 5
    assert set(manifest["files"]) == {"a.bin", "b.txt"}
    assert manifest["files"]["b.txt"]["bytes"] == 4


def test_every_flipped_bit_is_noticed_and_named(folder):
    """200 random bits, in each of the files in turn."""
    generator, names = random.Random(0), ["a.bin", "b.txt", MANIFEST]
    for turn in range(200):
        path = folder / names[turn % 3]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=path.name):
            verify(folder)
        with pytest.raises(DamagedError, match=path.name):
            verify_file(path if path.name != MANIFEST else folder / "a.bin", "bin")
        path.write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize("damage", ["cut", "longer", "gone"])
def test_other_damage(folder, damage):
    path = folder / "a.bin"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content + b"x")
    with pytest.raises(DamagedError, match=r"a.bin is (missing|damaged)"):
        verify(folder)


@pytest.mark.parametrize("text", ["[1]", "{}", '{"checksum": 5}', "[" * 100_000, "\ud800"])
def test_a_manifest_that_is_none(folder, text):
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedError, match=r"manifest.json is damaged"):
        verify(folder)


def test_a_folder_that_was_not_written_to_its_end(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(DamagedError, match=r"manifest.json is missing: the folder was not written to its end"):
        verify(folder)


def test_a_later_version(folder, monkeypatch):
    monkeypatch.setattr("sb3_mbrl.agent.manifest.FORMAT", 2)
    (folder / MANIFEST).unlink()
    write_manifest(folder, {})
    monkeypatch.undo()
    with pytest.raises(DamagedError, match=r"another version of sb3-mbrl \(format 2, not 1\)"):
        verify(folder)
    assert json.loads((folder / MANIFEST).read_text())["format"] == 2


def test_files_without_a_manifest_are_not_checked(tmp_path):
    (tmp_path / "a").touch()
    verify_file(tmp_path / "a", "zip")
    verify_file(tmp_path / "missing", "zip")
    verify_file(None, "zip")


@pytest.mark.parametrize("files", [None, [], {"a.bin": 3}, {"a.bin": {"bytes": "200", "sha256": ""}}, {"../a": {}}])
def test_a_manifest_with_other_values_under_a_good_checksum(folder, files):
    """AttributeError: 'list' object has no attribute 'items'."""
    content = {"format": 1, "files": files}
    (folder / MANIFEST).write_bytes(_text({**content, "checksum": _checksum_of(content)}))
    with pytest.raises(DamagedError, match=r"manifest.json is damaged: it does not list the files"):
        verify(folder)
