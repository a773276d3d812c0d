"""The choice of parts by their spaces, of environment functions by their ids, and the overview."""

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.contracts import (
    EnvFunctions,
    UnsupportedSpace,
    WorldModelSpec,
)
from sb3_mbrl.hookspecs import hookimpl
from sb3_mbrl.plugins import (
    BrokenPluginError,
    PluginConflictError,
    PluginContractError,
    PluginWarning,
    get_registry,
)
from tests.plugins.plugin_fakes import ACTION, BROKEN, DICT, HOOK, VECTOR, Local2, Still, broken_registry, good


def test_auto_takes_the_highest_rank_that_fits(install):
    registry = get_registry()
    assert registry.auto_world_model(VECTOR, ACTION).selection.name == "ensemble"
    choice = registry.auto_world_model(DICT, ACTION)
    assert choice.selection.name == "tabular"
    assert choice.reasons == {"ensemble": "only Box observations"}


def test_auto_finds_nothing(install):
    spec = WorldModelSpec(name="tabular", factory=Still, supports=lambda *_: "never", auto_rank=1, override=True)

    class Never:
        @hookimpl
        def sb3_mbrl_world_models(self):
            return [spec]

    choice = get_registry().with_plugins([Never]).auto_world_model(DICT, ACTION)
    assert choice.selection is None
    assert choice.reasons == {"ensemble": "only Box observations", "tabular": "never"}


@pytest.mark.parametrize("supports", [lambda *_: 1 / 0, lambda *_: True])
def test_auto_passes_over_a_faulty_candidate(install, supports):
    class Faulty:
        @hookimpl
        def sb3_mbrl_world_models(self):
            return [WorldModelSpec(name="faulty", factory=Still, supports=supports, auto_rank=99)]

    registry = get_registry().with_plugins([Faulty])
    with pytest.warns(PluginWarning, match=r"'faulty' of .* \(given to this agent\): its supports\(\) r.* passed over"):
        assert registry.auto_world_model(VECTOR, ACTION).selection.name == "ensemble"
    with pytest.raises(PluginContractError, match=r"its supports\(\) r"):
        registry.check_supports(registry.resolve("world_model", "faulty"), VECTOR, ACTION)


def test_a_refusal_names_other_models_although_one_plugin_is_faulty(install):
    """The list of models that take the spaces must not be cut short by one whose ``supports`` fails."""

    class Faulty:
        @hookimpl
        def sb3_mbrl_world_models(self):
            return [WorldModelSpec(name="faulty", factory=Still, supports=lambda *_: 1 / 0)]

    registry = get_registry().with_plugins([Faulty])
    with (
        pytest.warns(PluginWarning, match="'faulty'"),
        pytest.raises(UnsupportedSpace, match="only Box observations"),
    ):
        registry.check_supports(registry.resolve("world_model", "ensemble"), DICT, ACTION)


def test_auto_passes_over_another_contract(install):
    class Old:
        @hookimpl
        def sb3_mbrl_world_models(self):
            return [WorldModelSpec(name="old", factory=Still, auto_rank=99, contract=0)]

    choice = get_registry().with_plugins([Old]).auto_world_model(VECTOR, ACTION)
    assert choice.selection.name == "ensemble"
    assert "Old (given to this agent) was written for contract v0; this sb3-mbrl speaks v2." in choice.reasons["old"]


def test_check_supports_names_those_that_do(install):
    registry = get_registry()
    registry.check_supports(registry.resolve("world_model", "ensemble"), VECTOR, ACTION)
    registry.check_supports(registry.resolve("world_model", Local2), DICT, ACTION)
    with pytest.raises(UnsupportedSpace) as caught:
        registry.check_supports(registry.resolve("world_model", "ensemble"), DICT, ACTION)
    assert str(caught.value) == (
        f"world model 'ensemble' (built in) does not take observations {DICT} with actions {ACTION}: only Box observations\n"
        "  These do: tabular."
    )


class FakeEnv(gym.Env):
    def __init__(self, env_id):
        self.spec = None if env_id is None else gym.envs.registration.EnvSpec(env_id)


def env_plugin(distribution_source: dict[str, str], install) -> None:
    for distribution, pattern in distribution_source.items():
        install(
            distribution,
            f"""
            from sb3_mbrl.hookspecs import hookimpl
            from sb3_mbrl.contracts import EnvFunctions, EnvFunctionsSpec

            def functions(env):
                return EnvFunctions(reward_fn={distribution!r})

            @hookimpl
            def sb3_mbrl_env_functions():
                return [EnvFunctionsSpec(name={distribution!r}, factory=functions, env_ids=({pattern!r},))]
            """,
        )


def test_sb3_mbrl_env_functions(install):
    registry = get_registry()
    functions = registry.env_functions(FakeEnv("Hopper-v5"))
    assert functions.reward_fn is None
    terminated = functions.termination_fn(None, None, th.tensor([[0.6], [0.8]]))
    assert terminated.tolist() == [True, False]
    assert registry.env_functions(FakeEnv("Hopper-v2")) == EnvFunctions()
    assert registry.env_functions(FakeEnv("Walker2d-v5")) == EnvFunctions()
    assert registry.env_functions(FakeEnv(None)) == EnvFunctions()


@pytest.mark.parametrize(
    ("patterns", "winner"),
    [
        ({"a": "Hopper-v[45]"}, "a"),  # a plugin before an equally close built-in
        ({"a": "*"}, None),  # the closer built-in before a plugin
        ({"a": "Hopper-*", "b": "Hopper-v5"}, "b"),
        ({"a": "Hopper-v5", "b": "Hopper-v[0-9]"}, "a"),
    ],
)
def test_env_functions_of_the_closest_pattern(install, patterns, winner):
    env_plugin(patterns, install)
    assert get_registry().env_functions(FakeEnv("Hopper-v5")).reward_fn == winner


def test_env_functions_in_conflict(install):
    env_plugin({"a": "Hopper-v5", "b": "Hopper-v5"}, install)
    with pytest.raises(PluginConflictError) as caught:
        get_registry().env_functions(FakeEnv("Hopper-v5"))
    assert str(caught.value) == (
        "the reward and termination of 'Hopper-v5' are offered by 'a' of a 1.0 and 'b' of b 1.0; "
        "give reward_fn and termination_fn yourself or block one with SB3_MBRL_BLOCK=b"
    )


def test_report(install, monkeypatch):
    install("my-gp", good("ensemble"))
    install("sb3-mbrl-foo", BROKEN)
    install("sb3-mbrl-new", good("new", contract=3))
    install("sb3-mbrl-quiet", HOOK + "def sb3_mbrl_on_setup(agent):\n    pass")
    install("sb3-mbrl-table", good("tabular", override=True))
    install("sb3-mbrl-zzz", good("zzz"))
    monkeypatch.setenv("SB3_MBRL_BLOCK", "zzz")
    rows = broken_registry().report()
    assert [(row.name, row.kind, row.distribution, row.status) for row in rows] == [
        ("ensemble", "world_model", "sb3-mbrl", "conflict"),
        ("tabular", "world_model", "sb3-mbrl", "replaced"),
        ("cem", "planner", "sb3-mbrl", "ok"),
        ("hopper", "env_functions", "sb3-mbrl", "ok"),
        ("ensemble", "world_model", "my-gp", "conflict"),
        ("foo", "plugin", "sb3-mbrl-foo", "broken"),
        ("new", "world_model", "sb3-mbrl-new", "broken"),
        ("quiet", "plugin", "sb3-mbrl-quiet", "ok"),
        ("tabular", "world_model", "sb3-mbrl-table", "ok"),
        ("zzz", "plugin", "sb3-mbrl-zzz", "blocked"),
    ]
    errors = {row.distribution: row.error for row in rows}
    assert errors["sb3-mbrl-foo"] == "ModuleNotFoundError: No module named 'no_such_package_anywhere'"
    assert errors["sb3-mbrl-zzz"] == "by SB3_MBRL_BLOCK"
    assert rows[1].error == "by sb3-mbrl-table 1.0"
    assert rows[7].hooks == ("sb3_mbrl_on_setup",)
    assert (rows[8].version, rows[8].summary, rows[8].hooks) == ("1.0", "a good one", ("sb3_mbrl_world_models",))
    assert all("\n" not in row.error for row in rows)


class Offering:
    def __init__(self, **record):
        self.spec = WorldModelSpec(name="odd", factory=Still, **record)

    @hookimpl
    def sb3_mbrl_world_models(self):
        return [self.spec]


@pytest.mark.parametrize("rank", ["high", True, 1.5])
def test_an_auto_rank_that_is_no_whole_number(rank):
    with pytest.raises(BrokenPluginError, match=r"plugin 'Offering' .*the auto_rank of 'odd' is .*not a whole number"):
        get_registry().with_plugins([Offering(auto_rank=rank)])


@pytest.mark.parametrize(
    ("supports", "words"), [(lambda space: None, "raised TypeError"), (lambda *spaces: True, "returned True")]
)
def test_supports_that_breaks_the_contract_names_its_plugin(supports, words):
    registry = get_registry().with_plugins([Offering(supports=supports)])
    space = spaces.Box(-1, 1, (2,))
    with pytest.raises(PluginContractError, match=rf"'odd' of Offering \(given to this agent\): its supports.* {words}"):
        registry.check_supports(registry.resolve("world_model", "odd"), space, space)
