"""Every kind of part is registered and found by its name."""

from sb3_mbrl.plugins import (
    get_registry,
)
from tests.plugins.plugin_fakes import ACTION, VECTOR, Strict, good


def test_sb3_mbrl_world_models(install):
    install("sb3-mbrl-gp", good(), version="0.2.0")
    registry = get_registry()
    assert [spec.name for spec in registry.specs("world_model")] == ["ensemble", "tabular", "gp"]
    selection = registry.resolve("world_model", "gp")
    assert isinstance(selection.build(VECTOR, ACTION, n_hidden=3), Strict)
    assert selection.reference == {
        "how": "name",
        "name": "gp",
        "factory": "tests.plugins.plugin_fakes:Strict",
        "distribution": "sb3-mbrl-gp",
        "version": "0.2.0",
    }


def offer(install, kind: str, spec: str) -> None:
    """Install a plug-in that offers one part of a kind, and check that the part is found by its name."""
    install(
        "sb3-mbrl-x",
        f"""
        import sb3_mbrl.contracts as contracts
        from sb3_mbrl.hookspecs import hookimpl

        @hookimpl
        def sb3_mbrl_{kind}s():
            return [contracts.{spec}(name="x", factory=dict)]
        """,
    )
    assert get_registry().resolve(kind, "x").factory is dict
    assert get_registry().resolve(kind, "x").spec.kind == kind


def test_sb3_mbrl_algorithms(install):
    offer(install, "algorithm", "AlgorithmSpec")


def test_sb3_mbrl_planners(install):
    offer(install, "planner", "PlannerSpec")


def test_sb3_mbrl_imaginations(install):
    offer(install, "imagination", "ImaginationSpec")
