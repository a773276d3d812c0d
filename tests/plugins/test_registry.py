"""From a name to a part: unknown names, conflicts, versions, and the plugins of one agent."""

import textwrap
import types

import pytest
from torch import nn

from sb3_mbrl.contracts import (
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PartArgumentError,
    PluginConflictError,
    PluginError,
    PluginVersionError,
    Registry,
    UnknownPartError,
    get_registry,
    reset_registry,
)
from sb3_mbrl.specs import CHANGED_IN_2
from sb3_mbrl.version import __version__
from tests.plugins.plugin_fakes import (
    ACTION,
    BROKEN,
    DICT,
    VECTOR,
    BuiltIn,
    Given,
    Local2,
    Still,
    Strict,
    broken_registry,
    good,
)


def test_unknown_name(install):
    install("sb3-mbrl-gp", good(), version="0.2.0")
    install("sb3-mbrl-foo", BROKEN)
    with pytest.raises(UnknownPartError) as caught:
        broken_registry().resolve("world_model", "gpp")
    assert str(caught.value) == (
        "unknown world model 'gpp'. Did you mean 'gp'?\n"
        "  available: ensemble, tabular (built in); gp (sb3-mbrl-gp 0.2.0)\n"
        "  broken: foo (sb3-mbrl-foo 1.0): ModuleNotFoundError: No module named 'no_such_package_anywhere' "
        "-> run `sb3-mbrl plugins`"
    )
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PluginError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sb3-mbrl-gp:gpp", "unknown world model 'sb3-mbrl-gp:gpp'. Did you mean 'gp'?"),
        ("no.module:Model", "unknown world model 'no.module:Model': there is no module 'no'"),
        (
            "tests.plugins.plugin_fakes:Stil",
            "unknown world model 'tests.plugins.plugin_fakes:Stil': "
            "module 'tests.plugins.plugin_fakes' has no 'Stil'. Did you mean 'Still'?",
        ),
        (
            "tests.plugins.plugin_fakes.Still",
            "unknown world model 'tests.plugins.plugin_fakes.Still'. A class is imported as 'package.module:Class'.",
        ),
    ],
)
def test_unknown_path(install, name, message):
    install("sb3-mbrl-gp", good())
    with pytest.raises(UnknownPartError) as caught:
        get_registry().resolve("world_model", name)
    assert str(caught.value).split("\n")[0] == message


def test_module_that_cannot_be_imported(install):
    install("sb3-mbrl-gp", good())
    install("mine", BROKEN)
    reset_registry()
    with pytest.raises(BrokenPluginError) as caught:
        Registry(broken_registry().plugins[:1]).resolve("world_model", "mine:Model")
    assert str(caught.value) == (
        "unknown world model 'mine:Model': importing mine failed: "
        "ModuleNotFoundError: No module named 'no_such_package_anywhere'"
    )


def test_lazy_factory_that_cannot_be_imported(install):
    install("sb3-mbrl-gp", good().replace("tests.plugins.plugin_fakes:Strict", "missing_module:Model"))
    selection = get_registry().resolve("world_model", "gp")
    with pytest.raises(BrokenPluginError, match=r"world model 'gp' \(sb3-mbrl-gp 1.0\): there is no module 'missing_module'"):
        selection.build(VECTOR, ACTION)


def test_path_class_factory_and_instance(install):
    registry = get_registry()

    class Local(Still):
        pass

    def factory(observation_space, action_space):
        return Still(observation_space, action_space, speed=4.0)

    by_path = registry.resolve("world_model", "tests.plugins.plugin_fakes:Local2")
    assert by_path.reference == {
        "how": "import",
        "name": "tests.plugins.plugin_fakes:Local2",
        "factory": "tests.plugins.plugin_fakes:Local2",
        "distribution": "",
        "version": "",
    }
    assert type(by_path.build(VECTOR, ACTION)) is Local2
    by_class = registry.resolve("world_model", Local)
    assert by_class.factory is Local
    assert by_class.spec is None
    assert by_class.reference["how"] == "class"
    by_factory = registry.resolve("world_model", factory)
    assert by_factory.build(VECTOR, ACTION).speed == 4.0
    assert by_factory.reference["how"] == "factory"
    model = Still(VECTOR, ACTION)
    by_instance = registry.resolve("world_model", model)
    assert by_instance.build(VECTOR, ACTION, reward_fn=None) is model
    assert (by_instance.reference["how"], by_instance.name) == ("instance", "Still")
    with pytest.raises(
        PartArgumentError, match=r"world model 'Still' is an instance: world_model_kwargs \(speed\) come too late"
    ):
        by_instance.build(VECTOR, ACTION, speed=1.0)


def test_class_of_a_registered_part_is_recognised(install):
    selection = get_registry().resolve("world_model", Still)
    assert selection.spec.name == "ensemble"
    assert selection.reference["how"] == "class"
    with pytest.raises(UnsupportedSpace):
        get_registry().check_supports(selection, DICT, ACTION)


@pytest.mark.parametrize("selection", [3, None, nn.Linear(1, 1), BuiltIn()])
def test_what_cannot_be_a_world_model(install, selection):
    with pytest.raises(
        TypeError, match=r"is no world model: give a name, 'package.module:Class', a class, a factory or an instance"
    ):
        get_registry().resolve("world_model", selection)


def test_unknown_kind(install):
    with pytest.raises(ValueError, match="'worldmodel' is not a kind of part: algorithm, world_model, planner"):
        get_registry().resolve("worldmodel", "x")


def test_conflict_is_raised_only_when_the_name_is_asked_for(install):
    install("my-gp", good(), version="1.1")
    install("sb3-mbrl-gp", good(), version="0.2.0")
    registry = get_registry()
    registry.resolve("world_model", "ensemble")
    with pytest.raises(PluginConflictError) as caught:
        registry.resolve("world_model", "gp")
    assert str(caught.value) == (
        "world model name 'gp' is offered by my-gp 1.1 and sb3-mbrl-gp 0.2.0; "
        "write world_model='my-gp:gp' or block one with SB3_MBRL_BLOCK=sb3-mbrl-gp"
    )
    assert registry.resolve("world_model", "sb3-mbrl-gp:gp").reference["version"] == "0.2.0"
    assert registry.resolve("world_model", "my-gp:gp").reference["version"] == "1.1"


def test_conflict_is_settled_as_the_message_says(install, monkeypatch):
    install("my-gp", good(), version="1.1")
    install("sb3-mbrl-gp", good(), version="0.2.0")
    monkeypatch.setenv("SB3_MBRL_BLOCK", "sb3-mbrl-gp")
    assert get_registry().resolve("world_model", "gp").reference["distribution"] == "my-gp"


def test_conflict_inside_one_distribution_is_told_by_entry_point(install, tmp_path):
    install("two", good())
    (tmp_path / "two" / "other.py").write_text(textwrap.dedent(good()))
    (tmp_path / "two" / "two-1.0.dist-info" / "entry_points.txt").write_text("[sb3_mbrl]\na = two\nb = other\n")
    with pytest.raises(PluginConflictError, match="write world_model='two:a:gp' or block one with SB3_MBRL_BLOCK=two:b"):
        get_registry().resolve("world_model", "gp")
    with pytest.raises(PluginConflictError):
        get_registry().resolve("world_model", "two:gp")
    assert get_registry().resolve("world_model", "two:a:gp").record.origin.plugin == "a"
    assert get_registry().resolve("world_model", "b:gp").record.origin.plugin == "b"


def test_name_of_a_built_in_part_is_a_conflict(install):
    install("my-gp", good("ensemble"), version="1.1")
    registry = get_registry()
    with pytest.raises(PluginConflictError) as caught:
        registry.resolve("world_model", "ensemble")
    assert str(caught.value) == (
        f"world model name 'ensemble' is offered by sb3-mbrl {__version__} (built in) and my-gp 1.1; "
        "write world_model='sb3-mbrl:ensemble' or block one with SB3_MBRL_BLOCK=my-gp "
        "(a record with override=True replaces a built-in part)"
    )
    assert registry.resolve("world_model", "sb3-mbrl:ensemble").factory is Still
    assert registry.auto_world_model(VECTOR, ACTION).selection.factory is Still


def test_override_replaces_a_built_in_part(install):
    install("my-gp", good("ensemble", override=True))
    registry = get_registry()
    assert registry.resolve("world_model", "ensemble").factory is Strict
    assert registry.resolve("world_model", "sb3-mbrl:ensemble").factory is Still
    assert [spec.name for spec in registry.specs("world_model")] == ["tabular", "ensemble"]
    assert registry.auto_world_model(VECTOR, ACTION).selection.name == "tabular"


def test_two_overrides_of_one_part_are_a_conflict(install):
    install("a-gp", good("ensemble", override=True))
    install("b-gp", good("ensemble", override=True))
    with pytest.raises(PluginConflictError, match=r"offered by a-gp 1.0 and b-gp 1.0; write world_model='a-gp:ensemble'"):
        get_registry().resolve("world_model", "ensemble")


@pytest.mark.parametrize(
    ("contract", "remedy"),
    [(3, "a newer sb3-mbrl: pip install --upgrade sb3-mbrl"), (1, "a newer sb3-mbrl-foo"), (0, "a newer sb3-mbrl-foo")],
)
def test_other_contract_version(install, contract, remedy):
    install("sb3-mbrl-foo", good("foo", contract=contract))
    registry = get_registry()
    with pytest.raises(PluginVersionError) as caught:
        registry.resolve("world_model", "foo")
    message = f"sb3-mbrl-foo 1.0 was written for contract v{contract}; this sb3-mbrl speaks v2.\n  'foo' needs {remedy}"
    changes = f"\n{CHANGED_IN_2}" if contract < 2 else ""
    assert str(caught.value) == message + changes
    for name in ("contracts.Loss", "held_out()", "prior(state, generator)", "RolloutImagination", "docs/plugins.md"):
        assert name in CHANGED_IN_2


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
