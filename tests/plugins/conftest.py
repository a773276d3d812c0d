"""Fake distributions on a temporary path, and a fresh registry for every test."""

import importlib.metadata
import sys
import textwrap
import types
from collections.abc import Callable

import pytest

import sb3_mbrl.plugins.loader as loader
from sb3_mbrl.plugins import (
    reset_registry,
)
from tests.plugins.plugin_fakes import BuiltIn


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for variable in ("PLUGINS", "BLOCK", "TRACE", "STRICT"):
        monkeypatch.delenv(f"SB3_MBRL_{variable}", raising=False)
    reset_registry()
    yield
    reset_registry()


@pytest.fixture
def install(tmp_path, monkeypatch) -> Callable[..., str]:
    """Install fake distributions: a folder on the path with a module and its metadata. Other distributions are not seen."""
    builtin = types.ModuleType("sb3_mbrl.builtin")
    vars(builtin).update({name: getattr(BuiltIn(), name) for name in vars(BuiltIn) if name.startswith("sb3_mbrl_")})
    monkeypatch.setitem(sys.modules, "sb3_mbrl.builtin", builtin)
    names: set[str] = set()
    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        loader, "entry_points", lambda group: [point for point in real(group=group) if point.dist.name in names]
    )

    def install(distribution: str, source: str, *, version: str = "1.0", entry: str = "", module: str = "") -> str:
        module = module or distribution.replace("-", "_")
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        entry = entry or distribution.rpartition("-")[2]
        (info / "entry_points.txt").write_text(f"[sb3_mbrl]\n{entry} = {module}\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        names.add(distribution)
        return module

    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
