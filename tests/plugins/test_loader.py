"""Finding and loading: a broken, blocked or unwanted plugin harms no other."""

import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PluginContractError,
    PluginWarning,
    UnknownPartError,
    get_registry,
    reset_registry,
)
from tests.plugins.plugin_fakes import ACTION, BROKEN, HOOK, VECTOR, BuiltIn, broken_registry, good


def test_importing_the_library_loads_no_plugin(install, tmp_path):
    install("sb3-mbrl-loud", "raise SystemExit('imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'sb3-mbrl-loud')!r}); import sb3_mbrl, sb3_mbrl.plugins"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_registry_is_loaded_once_and_reset(install):
    registry = get_registry()
    assert get_registry() is registry
    install("sb3-mbrl-gp", good())
    assert len(get_registry().plugins) == 1
    reset_registry()
    assert [str(plugin) for plugin in get_registry().plugins] == ["builtin (built in)", "gp (sb3-mbrl-gp 1.0)"]


def test_broken_plugin_is_one_line_of_warning_and_harms_no_other(install):
    install("sb3-mbrl-foo", BROKEN)
    install("sb3-mbrl-gp", good())
    with pytest.warns(PluginWarning) as caught:
        registry = get_registry()
    assert [str(warning.message) for warning in caught] == [
        "plugin 'foo' (sb3-mbrl-foo 1.0) is broken and left out: "
        "ModuleNotFoundError: No module named 'no_such_package_anywhere' (see `sb3-mbrl plugins`)"
    ]
    assert registry.resolve("world_model", "gp").name == "gp"


@pytest.mark.parametrize("name", ["foo", "sb3-mbrl-foo:gp", "foo:gp", "sb3_mbrl_foo:gp"])
def test_broken_plugin_shows_its_traceback_when_asked_for(install, name):
    install("sb3-mbrl-foo", BROKEN)
    with pytest.raises(BrokenPluginError) as caught:
        broken_registry().resolve("world_model", name)
    assert str(caught.value) == (
        "plugin 'foo' (sb3-mbrl-foo 1.0) is broken: ModuleNotFoundError: No module named 'no_such_package_anywhere'\n"
        "  Repair it, or keep it out with SB3_MBRL_BLOCK=sb3-mbrl-foo"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.__cause__.__traceback__ is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            HOOK + "def sb3_mbrl_wrold_models():\n    return []",
            "there is no hook 'sb3_mbrl_wrold_models'. Did you mean 'sb3_mbrl_world_models'?",
        ),
        (
            HOOK + "def sb3_mbrl_before_imagination(agent, horizont):\n    pass",
            "sb3_mbrl_before_imagination has no argument 'horizont' (its arguments: agent, horizon, n_starts)",
        ),
        (
            HOOK + "def sb3_mbrl_planners():\n    return {'a': 1}",
            "sb3_mbrl_planners returned dict, not a list of PlannerSpec",
        ),
        (HOOK + "def sb3_mbrl_planners():\n    pass", "sb3_mbrl_planners returned NoneType, not a list of PlannerSpec"),
        (
            HOOK + "def sb3_mbrl_planners():\n    return [WorldModelSpec(name='a', factory=dict)]",
            "sb3_mbrl_planners returned a list with WorldModelSpec, not PlannerSpec",
        ),
        (
            HOOK + "def sb3_mbrl_planners():\n    return [PlannerSpec(name='a', factory=dict)] * 2",
            "sb3_mbrl_planners offers 'a' twice",
        ),
        (
            HOOK + "def sb3_mbrl_planners():\n    return [PlannerSpec(name='a:b', factory=dict)]",
            "sb3_mbrl_planners offers 'a:b': a name has no colon, is not empty and not 'auto'",
        ),
        (
            HOOK + "def sb3_mbrl_planners():\n    return [PlannerSpec(name='a', factory='module')]",
            "sb3_mbrl_planners: the factory of 'a' is 'module', not callable or 'module:attribute'",
        ),
        (
            HOOK.replace("@hookimpl\n", "@hookimpl(wrapper=True)\n") + "def sb3_mbrl_planners():\n    return (yield)",
            "sb3_mbrl_planners must return its own records; it cannot be a wrapper",
        ),
        ("def sb3_mbrl_planners():\n    return []", "it implements no hook; mark its functions with @sb3_mbrl.hookimpl"),
        (HOOK + "def sb3_mbrl_planners():\n    raise KeyError('oh')", "'oh'"),
    ],
)
def test_broken_in_every_other_way(install, source, message):
    install("sb3-mbrl-foo", source)
    install("sb3-mbrl-gp", good())
    with pytest.warns(PluginWarning, match=r"plugin 'foo' \(sb3-mbrl-foo 1.0\) is broken") as caught:
        registry = get_registry()
    assert len(caught) == 1
    (plugin,) = [plugin for plugin in registry.plugins if plugin.origin.plugin == "foo"]
    assert str(plugin.error) == message
    assert isinstance(plugin.error, (PluginContractError, KeyError))
    assert registry.resolve("world_model", "gp").build(VECTOR, ACTION).n_hidden == 8
    assert registry.hook.sb3_mbrl_planners() == [BuiltIn().sb3_mbrl_planners()]


def test_optional_hook_of_a_newer_host_is_no_mistake(install):
    install("sb3-mbrl-gp", good() + "\n    @hookimpl(optionalhook=True)\n    def sb3_mbrl_hook_of_tomorrow():\n        pass\n")
    assert get_registry().resolve("world_model", "gp").name == "gp"


def test_broken_built_in_parts_are_an_error(install, monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_mbrl.builtin", types.ModuleType("sb3_mbrl.builtin"))
    with pytest.raises(
        BrokenPluginError, match=r"plugin 'builtin' \(built in\) is broken: PluginContractError: it implements no"
    ):
        get_registry()


def test_equal_entry_point_names_are_both_loaded(install):
    """pluggy's own loader silently ignores the second one."""
    install("a-gp", good("gp-a"), entry="gp")
    install("b-gp", good("gp-b"), entry="gp")
    registry = get_registry()
    assert registry.resolve("world_model", "gp-a").reference["distribution"] == "a-gp"
    assert registry.resolve("world_model", "gp-b").reference["distribution"] == "b-gp"


@pytest.mark.parametrize(
    ("value", "loaded"),
    [
        (None, ["a", "b"]),
        ("", []),
        ("a", ["a"]),
        ("sb3-mbrl-b", ["b"]),
        ("SB3_mbrl.B", ["b"]),
        (" a , sb3-mbrl-b:b ", ["a", "b"]),
    ],
)
def test_allow_list(install, monkeypatch, value, loaded):
    install("sb3-mbrl-a", good("gp-a"))
    install("sb3-mbrl-b", good("gp-b"))
    if value is not None:
        monkeypatch.setenv("SB3_MBRL_PLUGINS", value)
    plugins = get_registry().plugins[1:]
    assert [plugin.origin.plugin for plugin in plugins if plugin.status == "ok"] == loaded
    assert {plugin.blocked_by for plugin in plugins if plugin.status != "ok"} <= {"SB3_MBRL_PLUGINS"}


def test_allow_list_with_a_misprint(install, monkeypatch):
    install("sb3-mbrl-gp", good())
    monkeypatch.setenv("SB3_MBRL_PLUGINS", "sb3-mbrl-gpp")
    with pytest.warns(PluginWarning) as caught:
        get_registry()
    assert (
        str(caught[0].message) == "SB3_MBRL_PLUGINS names 'sb3-mbrl-gpp', which is not installed. Did you mean 'sb3-mbrl-gp'?"
    )


def test_blocked_plugin_is_not_imported(install, monkeypatch):
    module = install("sb3-mbrl-gp", good())
    monkeypatch.setenv("SB3_MBRL_BLOCK", "other,gp")
    with pytest.raises(UnknownPartError) as caught:
        get_registry().resolve("world_model", "gp")
    assert module not in sys.modules
    assert str(caught.value) == (
        "unknown world model 'gp'.\n"
        "  available: ensemble, tabular (built in)\n"
        "  blocked: gp (sb3-mbrl-gp 1.0) by SB3_MBRL_BLOCK"
    )


def test_strict_raises(install, monkeypatch):
    install("sb3-mbrl-foo", BROKEN)
    monkeypatch.setenv("SB3_MBRL_STRICT", "1")
    with pytest.raises(BrokenPluginError, match="plugin 'foo'") as caught:
        get_registry()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_trace_logs_hook_calls(install, monkeypatch, caplog):
    monkeypatch.setenv("SB3_MBRL_TRACE", "1")

    class Listener:
        @hookimpl
        def sb3_mbrl_before_imagination(self, horizon):
            pass

    with caplog.at_level(logging.INFO, "sb3_mbrl.plugins"):
        registry = get_registry().with_plugins([Listener()])
        registry.hook.sb3_mbrl_before_imagination(agent=object(), horizon=5, n_starts=7)
    assert [record.message for record in caplog.records if "imagination" in record.message] == [
        f"sb3_mbrl_before_imagination(agent=object, horizon=5, n_starts=7) -> 1 {Listener.__qualname__} (given to this agent)"
    ]
