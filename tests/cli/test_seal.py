"""The seal on a user's own records."""

import stat

from sb3_mbrl.cli.seal import is_sealed, seal


def test_only_the_own_key_seals(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "me"))
    assert not is_sealed(b"text", "0" * 64)
    sealed = seal(b"text")
    assert sealed == seal(b"text")
    assert is_sealed(b"text", sealed)
    for content, other in ((b"texts", sealed), (b"text", None), (b"text", ""), (b"text", 5), (b"text", "\u00e9")):
        assert not is_sealed(content, other)
    key = tmp_path / "me" / "sb3-mbrl" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody"))
    assert not is_sealed(b"text", sealed)
    assert seal(b"text") != sealed


def test_without_a_place_for_the_key(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert seal(b"text") is None
    assert not is_sealed(b"text", "0" * 64)
