"""Every test of the command line runs in a folder of its own."""

import sys

import pytest

from sb3_mbrl.cli import progress
from sb3_mbrl.plugins import reset_registry


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test in a folder of its own, which modules can be imported from, and with a fresh registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("PLUGINS", "BLOCK", "TRACE", "STRICT"):
        monkeypatch.delenv(f"SB3_MBRL_{variable}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path.with_name(f"{tmp_path.name}_home")))  # the key of own runs
    monkeypatch.setattr(progress, "DELAY", 600.0)  # what a busy machine would show is not what the tests are about
    reset_registry()
    before = set(sys.modules)
    yield tmp_path
    reset_registry()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
