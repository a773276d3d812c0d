"""The reference to a chosen part that a checkpoint keeps."""

import logging
import sys

import pytest

from sb3_mbrl.plugins import (
    BrokenPluginError,
    UnknownPartError,
    get_registry,
    reset_registry,
)
from tests.plugins.plugin_fakes import BROKEN, Given, Local2, Still, broken_registry, good


def reloaded(kind: str, reference: dict[str, str]):
    reset_registry()
    return broken_registry().from_reference(kind, reference)


def test_reference_survives_another_version_and_a_new_conflict(install, caplog):
    install("sb3-mbrl-gp", good(), version="0.3.0")
    install("my-gp", good())
    reference = {"how": "name", "name": "gp", "factory": "x:Y", "distribution": "sb3-mbrl-gp", "version": "0.2.0"}
    with caplog.at_level(logging.INFO, "sb3_mbrl.plugins"):
        selection = reloaded("world_model", reference)
    assert selection.reference == {**reference, "factory": "tests.plugins.plugin_fakes:Strict", "version": "0.3.0"}
    assert "the saved agent's world model 'gp' was saved with sb3-mbrl-gp 0.2.0; this is sb3-mbrl-gp 0.3.0" in caplog.text


@pytest.mark.parametrize("choice", ["ensemble", "sb3-mbrl:tabular", "tests.plugins.plugin_fakes:Local2", Local2, Still])
def test_reference_round_trip(install, choice):
    selection = get_registry().resolve("world_model", choice)
    again = reloaded("world_model", dict(selection.reference))
    assert again.reference == selection.reference
    assert again.factory is selection.factory
    assert all(isinstance(value, str) for value in again.reference.values())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            ("name", "gp", "sb3_mbrl_gp:GP", "sb3-mbrl-gp", "0.2.0"),
            "the saved agent's world model 'gp' needs sb3-mbrl-gp 0.2.0, which is not installed. "
            "Run `pip install sb3-mbrl-gp`.",
        ),
        (
            ("name", "pg", "sb3_mbrl_other:GP", "sb3-mbrl-other", "0.9"),
            "the saved agent's world model 'pg' was saved with sb3-mbrl-other 0.9; sb3-mbrl-other 1.0 does not offer it",
        ),
        (
            ("name", "mine", "x:Y", "", ""),
            "the saved agent's world model 'mine' came from a plugin that was given to the agent. "
            "Give it again: load(..., plugins=[...])",
        ),
        (
            ("instance", "Still", "x:Still", "", ""),
            "the saved agent's world model was given as an instance of x:Still, which is not stored. "
            "Give it again: load(..., world_model=...).",
        ),
        (
            ("factory", "f.<locals>.g", "x:f.<locals>.g", "", ""),
            "the saved agent's world model was given as x:f.<locals>.g, which cannot be imported. "
            "Give it again: load(..., world_model=...).",
        ),
        (
            ("class", "Y", "no_module_x:Y", "", ""),
            "the saved agent's world model is no_module_x:Y, which is neither registered nor the class of a world model that "
            "is imported already: a file must not choose what is run. If you trust it: load(..., trust=['no_module_x:Y']), or "
            "import its module first. Give it again: load(..., world_model=...).",
        ),
    ],
)
def test_reference_to_what_is_gone(install, reference, message):
    install("sb3-mbrl-other", good())
    keys = ("how", "name", "factory", "distribution", "version")
    with pytest.raises(UnknownPartError) as caught:
        reloaded("world_model", dict(zip(keys, reference, strict=True)))
    assert str(caught.value) == message


def test_reference_to_a_broken_or_blocked_plugin(install, monkeypatch):
    install("sb3-mbrl-foo", BROKEN)
    reference = {"how": "name", "name": "gp", "factory": "x:Y", "distribution": "sb3-mbrl-foo", "version": "1.0"}
    with pytest.raises(BrokenPluginError, match="plugin 'foo'"):
        reloaded("world_model", reference)
    monkeypatch.setenv("SB3_MBRL_PLUGINS", "")
    with pytest.raises(UnknownPartError, match=r"'gp' needs sb3-mbrl-foo 1.0, which SB3_MBRL_PLUGINS keeps out"):
        reloaded("world_model", reference)


def test_reference_to_a_given_plugin(install):
    reference = get_registry().with_plugins([Given]).resolve("world_model", "mine").reference
    assert get_registry().with_plugins([Given()]).from_reference("world_model", reference).factory is Local2


def test_a_file_cannot_choose_what_is_imported_or_called(tmp_path, monkeypatch):
    """A saved agent's JSON may name any ``module:attribute``: it was imported, and called with the spaces."""
    mark = tmp_path / "mark"
    text = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef make(*args, **kwargs):\n    raise SystemExit\n"
    (tmp_path / "a_stranger.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names = (
        "a_stranger:make",
        "os:system",
        "subprocess:Popen",
        "sb3_mbrl.models.ensemble:th.load",
        "builtins:object",
        ":",
        "",
    )
    for factory in names:
        for how in ("class", "factory", "import"):
            reference = {"how": how, "name": "x", "factory": factory, "distribution": "", "version": ""}
            with pytest.raises(UnknownPartError, match="a file must not choose what is run"):
                get_registry().from_reference("world_model", reference)
    assert not mark.exists()
    assert "a_stranger" not in sys.modules
    reference = {"how": "import", "name": "x", "factory": "a_stranger:make", "distribution": "", "version": ""}
    for trusted in ("a_stranger", "a_stranger:make"):
        assert get_registry().from_reference("world_model", reference, [trusted]).factory.__name__ == "make"
    assert mark.exists()
    monkeypatch.delitem(sys.modules, "a_stranger")


def test_a_file_may_name_what_is_registered_or_imported():
    for factory in ("sb3_mbrl.models.ensemble:EnsembleModel", f"{Local2.__module__}:Local2"):
        reference = {"how": "class", "name": "x", "factory": factory, "distribution": "", "version": ""}
        assert get_registry().from_reference("world_model", reference).factory.__name__ == factory.partition(":")[2]
