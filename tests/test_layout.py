"""The layout of sources and tests: tests are found by name, and imports point downwards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sb3_mbrl

TESTS, SOURCES = Path(__file__).parent, Path(sb3_mbrl.__file__).parent

# ---- the rules

OF_MANY = {"benchmarks", "conformance", "examples", "invariants", "learning"}
"""Rooms of tests that are not about one source each; every other room mirrors one of ``sb3_mbrl``"""

OF_THE_PROJECT = {"test_layout", "test_project"}
"""Test modules beside the rooms that are not about one source each"""

LAYERS: list[set[str]] = [
    {"checks", "jit", "optim", "rng", "specs", "trees", "version"},
    {"contracts"},
    {"fitting", "hookspecs", "returns", "spaces", "timesteps"},
    {"buffers", "hyperparams", "networks", "plugins"},
    {"policies"},
    {"imagination"},
    {"envs"},
    {"models"},
    {"planners"},
    {"diagnostics"},
    {"holdout"},
    {"testing"},
    {"agent"},
    {"checkpoints"},
    {"callbacks"},
    {"algorithms"},
    {"builtin"},
    {"cli", "zoo"},
    {"", "__main__"},  # the package itself, as users import it
]
"""Rooms and modules of ``sb3_mbrl`` from the lowest to the highest: a module imports its own room and lower layers"""

UPWARD: dict[tuple[str, str], str] = {}
"""Imports that point upwards, with the reason"""

CYCLIC: dict[tuple[str, str], str] = {}
"""Imports, put off until they are needed, without which there would be no cycle; with the reason"""


WITHOUT_TESTS: dict[str, str] = {}
"""Sources that have no test module named after them, with the reason"""


# ---- tests are found by name


def sources() -> Iterator[Path]:
    """Yield all modules of ``sb3_mbrl``, without the ``__init__`` of packages that only import."""
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text())
        defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)
        if path.name != "__init__.py" or (defines and path.parent != SOURCES):
            yield path.relative_to(SOURCES)


def is_twin(test: str, source: Path) -> bool:
    """
    Tell whether a test module is about a source: ``test_model.py`` and ``test_model_refusals.py`` are about ``model.py``.
    Of several sources that fit, it is about the one with the longest name.
    """
    name = test.removeprefix("test_")
    fitting = [
        path.stem for path in (SOURCES / source.parent).glob("*.py") if name == path.stem or name.startswith(f"{path.stem}_")
    ]
    return max(fitting, key=len, default="") == source.stem


def test_every_source_has_a_test_module_named_after_it():
    """The twin of a package's ``__init__.py`` lies beside the package: ``test_cli.py`` is about ``cli/__init__.py``."""
    lonely = []
    for path in sources():
        source = path.parent.with_suffix(".py") if path.name == "__init__.py" else path
        tests = [test.stem for test in (TESTS / source.parent).glob("test_*.py")]
        if not any(is_twin(test, source) or test == f"test_{source.stem}" for test in tests):
            lonely.append(path.as_posix())
    assert lonely == sorted(WITHOUT_TESTS), "sources without tests of their name; or WITHOUT_TESTS names one that has some"


def has_twin(path: Path) -> bool:
    """Tell whether the room has the source that a test module is about: ``test_model_refusals.py`` is about ``model.py``."""
    words = path.stem.removeprefix("test_").split("_")
    names = [path.parent / "_".join(words[:n]) for n in range(1, len(words) + 1)]
    return any((SOURCES / name).is_dir() or (SOURCES / name).with_suffix(".py").is_file() for name in names)


def test_every_test_module_is_named_after_a_source():
    strays = [
        f"tests/{path}"
        for path in (path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py")))
        if path.parts[0] not in OF_MANY and path.stem not in OF_THE_PROJECT and not has_twin(path)
    ]
    assert strays == [], "these begin with the name of no source in their room: name each after the source that it tests"


def test_no_test_module_imports_another():
    """Shared helpers lie in a module whose name does not begin with ``test_``, or in a ``conftest.py``."""
    imported = [
        f"tests/{path} imports {name}"
        for path in (path.relative_to(TESTS) for path in sorted(TESTS.rglob("*.py")))
        for name, _ in imports((TESTS / path).read_text(), "")
        if name.split(".")[0] == "tests" and any(part.startswith("test_") for part in name.split("."))
    ]
    assert imported == []


# ---- imports point downwards


def imports(text: str, package: str) -> Iterator[tuple[str, bool]]:
    """
    Yield the names that a module imports, ``a.b`` for ``import a.b`` and ``from a import b``, and whether they are imported
    with the module itself: not within a function, and not for annotations only.
    """

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = [*parts[: len(parts) + 1 - node.level], node.module] if node.level else [node.module]
            yield from ((".".join([*filter(None, base), alias.name]), at_once) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (pair for child in node.body for pair in walk(child, False))
            yield from (pair for child in node.orelse for pair in walk(child, at_once))
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_once and not inside)

    return walk(ast.parse(text), True)


def graph() -> dict[str, dict[str, bool]]:
    """Return, for every module of ``sb3_mbrl``, the modules that it imports, and whether at once; without ``sb3_mbrl.``."""
    files = {}
    for path in SOURCES.rglob("*.py"):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    edges: dict[str, dict[str, bool]] = {module: {} for module in files}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, at_once in imports(path.read_text(), f"sb3_mbrl.{package}".rstrip(".")):
            if name.split(".")[0] != "sb3_mbrl":
                continue
            target = name.removeprefix("sb3_mbrl").removeprefix(".")
            if target not in files:  # a name within a module
                target = target.rpartition(".")[0]
            if target != module:
                edges[module][target] = edges[module].get(target, False) or at_once
    return edges


GRAPH = graph()


def test_every_room_has_a_layer():
    rooms = {module.split(".")[0] for module in GRAPH}
    assert sorted(rooms) == sorted(room for layer in LAYERS for room in layer)


def test_imports_point_downwards():
    height = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    upward = set()
    for module, targets in GRAPH.items():
        for target, at_once in targets.items():
            ours, theirs = module.split(".")[0], target.split(".")[0]
            if at_once and ours != theirs and height[theirs] >= height[ours]:
                upward.add((module, target))
    assert sorted(upward) == sorted(UPWARD), "imports of a higher layer, or of the same one; or UPWARD names one that is gone"


def cycle(edges: dict[str, list[str]]) -> list[str]:
    """Find a cycle by depth-first search: the first one, or nothing."""
    path: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for target in edges[module]:
            if circle := visit(target):
                return circle
        done.add(path.pop())
        return []

    return next(filter(None, map(visit, edges)), [])


def test_there_are_no_cycles():
    """Imports within functions and for annotations count too."""
    edges = {
        module: [target for target in targets if (module, target) not in CYCLIC] for module, targets in sorted(GRAPH.items())
    }
    assert cycle(edges) == [], "modules that import each other in a circle"
    gone = [pair for pair in CYCLIC if pair[1] not in GRAPH.get(pair[0], {})]
    assert gone == [], "CYCLIC names imports that are gone: take them out"


def test_cycles_are_found():
    assert cycle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]


def test_imports_are_found():
    text = """
import sb3_mbrl.one
from sb3_mbrl import two
from ..room import three
from . import four
if TYPE_CHECKING:
    from sb3_mbrl.five import Five
def later():
    import sb3_mbrl.six
"""
    assert list(imports(text, "sb3_mbrl.own")) == [
        ("sb3_mbrl.one", True),
        ("sb3_mbrl.two", True),
        ("sb3_mbrl.room.three", True),
        ("sb3_mbrl.own.four", True),
        ("sb3_mbrl.five.Five", False),
        ("sb3_mbrl.six", False),
    ]
