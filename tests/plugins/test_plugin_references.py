"""What a checkpoint remembers of a choice, and the plugins of one agent."""

import logging
import types

import pytest

from sb3_mbrl.contracts import (
    WorldModelSpec,
)
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PluginConflictError,
    PluginError,
    UnknownPartError,
    get_registry,
    reset_registry,
)
from tests.plugins.plugin_fakes import ACTION, BROKEN, VECTOR, Given, Local2, Still, broken_registry, good


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
            "the saved agent's world model cannot be imported (unknown world model 'no_module_x:Y': "
            "there is no module 'no_module_x'). Give it again: load(..., world_model=...).",
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


def test_plugins_of_one_agent_do_not_reach_another(install):
    calls = []

    class Listener:
        @hookimpl
        def sb3_mbrl_on_setup(self, agent):
            calls.append(agent)

    registry, other = get_registry(), get_registry().with_plugins([Given])
    mine = registry.with_plugins([Listener(), Given])
    mine.hook.sb3_mbrl_on_setup(agent="mine")
    other.hook.sb3_mbrl_on_setup(agent="other")
    registry.hook.sb3_mbrl_on_setup(agent="global")
    assert calls == ["mine"]
    assert mine.resolve("world_model", "mine").factory is Local2
    assert str(mine.resolve("world_model", "mine")) == "world model 'mine' (given to this agent)"
    with pytest.raises(UnknownPartError):
        registry.resolve("world_model", "mine")


def test_with_plugins_of_nothing_new_is_the_same_registry(install):
    registry = get_registry()
    assert registry.with_plugins(None) is registry
    assert registry.with_plugins([]) is registry
    given = registry.with_plugins([Given])
    assert given.with_plugins([Given]) is given
    plugin = Given()
    assert len(registry.with_plugins([plugin, plugin]).plugins) == 2


def test_given_module(install):
    module = types.ModuleType("my_notebook")
    module.sb3_mbrl_world_models = hookimpl(lambda: [WorldModelSpec(name="mine", factory=Local2)])
    registry = get_registry().with_plugins([module])
    assert registry.resolve("world_model", "my_notebook:mine").record.origin.plugin == "my_notebook"


def test_given_plugin_that_is_broken(install):
    with pytest.raises(BrokenPluginError) as caught:
        get_registry().with_plugins([Still(VECTOR, ACTION)])
    assert str(caught.value) == (
        "plugin 'Still' (given to this agent) is broken: "
        "PluginContractError: it implements no hook; mark its functions with @sb3_mbrl.hookimpl"
    )


def test_conflict_with_a_given_plugin(install):
    install("my-gp", good("mine"))
    with pytest.raises(PluginConflictError) as caught:
        get_registry().with_plugins([Given]).resolve("world_model", "mine")
    assert str(caught.value) == (
        "world model name 'mine' is offered by my-gp 1.0 and Given (given to this agent); "
        "write world_model='my-gp:mine' or block one with SB3_MBRL_BLOCK=my-gp"
    )
    assert get_registry().with_plugins([Given]).resolve("world_model", "Given:mine").factory is Local2


def test_given_names_of_installed_plugins(install, monkeypatch):
    install("sb3-mbrl-gp", good())
    install("sb3-mbrl-bad", good("bad"))
    install("sb3-mbrl-foo", BROKEN)
    monkeypatch.setenv("SB3_MBRL_PLUGINS", "")
    monkeypatch.setenv("SB3_MBRL_BLOCK", "bad")
    registry = get_registry()
    with pytest.raises(UnknownPartError):
        registry.resolve("world_model", "gp")
    mine = registry.with_plugins(["gp"])
    assert mine.resolve("world_model", "gp").name == "gp"
    assert mine.with_plugins(["sb3-mbrl-gp"]) is mine
    with pytest.raises(PluginError, match=r"plugin bad \(sb3-mbrl-bad 1.0\) was asked for, but SB3_MBRL_BLOCK keeps it out"):
        registry.with_plugins(["bad"])
    with pytest.raises(BrokenPluginError, match="No module named 'no_such_package_anywhere'"):
        registry.with_plugins(["foo"])
    with pytest.raises(UnknownPartError, match=r"no plugin 'gpp' is installed\. Did you mean 'gp'?"):
        registry.with_plugins(["gpp"])
