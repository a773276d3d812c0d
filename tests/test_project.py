"""The promises of README, docs, Makefile, constraints and wheel, as a newcomer would try them."""

import ast
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch as th
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stable_baselines3 import SAC
from stable_baselines3.common.logger import KVWriter, Logger

import sb3_mbrl
from sb3_mbrl import MBPO, hookimpl
from sb3_mbrl.contracts import WorldModelSpec
from sb3_mbrl.models.mlp import MLPModel

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ACCELERATOR = ("nvidia-", "cuda-", "triton")
"""The prefixes of packages that PyTorch installs on a machine with a GPU; they are not part of the pinned set"""


# ---------------------------------------------------------------------------------------------------------------- code blocks


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def few_steps(code: str) -> str:
    """Shorten training to 205 steps, just over the 200 that go before the first update, and without a progress bar."""
    return re.sub(r"\.learn\([\d_]+", ".learn(205", code).replace(", progress_bar=True", "")


def fewer_steps(code: str) -> str:
    """:func:`few_steps`, and 5 where an agent continues, since all of these train."""
    return few_steps(code).replace(".learn(205, reset_num_timesteps=False", ".learn(5, reset_num_timesteps=False")


class SomebodysPlugin:
    @hookimpl
    def sb3_mbrl_world_models(self):
        return [WorldModelSpec(name="my_model", factory=MLPModel)]


PAGES_OF_CODE = (
    "mbpo",
    "checkpoints",
    "plugins",
    "migration",
    "dyna",
    "dreamer",
    "muzero",
    "boards",
    "policies",
    "dhmbpo",
    "rollouts",
)


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{page}.md" for page in PAGES_OF_CODE)])
def test_code_blocks_run(name, tmp_path, monkeypatch):
    """One after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / name)
    assert blocks
    agent = None
    if name == "docs/checkpoints.md":
        agent = MBPO("MlpPolicy", "Pendulum-v1", gradient_steps=1, world_model="mlp", device="cpu")
        agent.learn(201)
    names = {"agent": agent, "MBPO": MBPO, "env": "Pendulum-v1", "my_module": SomebodysPlugin}
    for block in blocks:
        # Dreamer waits for a batch of sequences before it learns.
        shorter = few_steps if name == "docs/checkpoints.md" else fewer_steps
        code = shorter(block).replace("**settings)", "learning_starts=100, **settings)")
        exec(compile(code, name, "exec"), names)
    if name == "README.md":
        assert (tmp_path / "pendulum.zip").is_file()
    if name == "docs/migration.md":
        assert names["ppo"].num_timesteps >= 205
        assert isinstance(names["plain"], SAC)
    if name == "docs/plugins.md":
        assert names["small_agent"].world_model.n_members == 3
        assert names["agent"].num_timesteps == 205
        assert names["agent"].world_model.weights.any()
    if name == "docs/checkpoints.md":
        assert names["agent"].num_timesteps == 201 + 205
        assert names["agent"].replay_buffer.size() == 201 + 205


def test_a_first_afternoon_with_your_own_simulator(tmp_path, monkeypatch, capsys):
    """Every block of docs/your-simulator.md, Python and shell; what the reader saves as tank.py is the first."""
    page = ROOT / "docs" / "your-simulator.md"
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    (tmp_path / "tank.py").write_text(blocks[0])
    for command in sh_lines(page):
        command = re.sub(r"--steps \d+", "--steps 30 --eval-episodes 1", command).replace(
            "--eval-every 250", "--eval-every 20"
        )
        command = command.replace("sb3-mbrl ", f"{sys.executable} -m sb3_mbrl ")
        paths = os.pathsep.join([str(ROOT), str(tmp_path)])
        command = command.replace("PYTHONPATH=. ", f"PYTHONPATH={paths} ")
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    names = {}
    for block in blocks:
        code = re.sub(r"(MBPO\(.*)seed=0", r'\1seed=0, fit_kwargs={"max_batches": 20}', fewer_steps(block))
        exec(compile(code, page.name, "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"0\.\d{4} s per real step, 0\.\d{4} s per update", printed)
    assert re.search(r"^gradient_steps: -?\d+$", printed, flags=re.M)
    assert re.search(r"^world_model=auto: .*\nworld_model=None: ", printed, flags=re.M)
    assert names["env"].spec.id == "Tank-v0"
    assert (tmp_path / "vecnormalize.pkl").is_file()


def test_the_tank_of_the_docs_is_what_its_known_functions_say():
    names = {}
    for block in python_blocks(ROOT / "docs" / "your-simulator.md"):
        if "class TankEnv" in block or "def reward" in block:
            exec(compile(block.partition("agent = ")[0], "tank", "exec"), names)
    env = names["TankEnv"]()
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    ends = 0
    for _ in range(300):
        action = env.action_space.sample()
        next_obs, reward, terminated, _, _ = env.step(action)
        batch = [th.as_tensor(value)[None] for value in (obs, action, next_obs)]
        assert float(names["reward"](*batch)) == pytest.approx(reward, abs=1e-5)
        assert bool(names["terminated"](*batch)) == terminated
        assert env.observation_space.contains(next_obs)
        ends += terminated
        obs = env.reset()[0] if terminated else next_obs
    assert ends > 3


def test_the_first_example_is_for_hasty_readers():
    first = python_blocks(ROOT / "README.md")[0].strip().splitlines()
    assert len(first) <= 6
    assert first[0] == "from sb3_mbrl import MBPO"


def test_the_readme_shows_before_it_explains():
    text = (ROOT / "README.md").read_text()
    assert [text.index(picture) for picture in ("halfcheetah.png", "dream.gif")] < [text.index("```")] * 2
    assert len(text) < 7_100  # half of what it was


# ----------------------------------------------------------------------------------------------------------------------- docs


class Keys(KVWriter):
    def __init__(self):
        self.seen = set()

    def write(self, key_values, key_excluded, step=0):
        self.seen.update(key_values)

    def close(self):
        pass


def test_every_logged_key_is_explained():
    """In both directions: every logged key is explained, and every explained key is logged."""
    keys = Keys()
    agent = MBPO(
        "MlpPolicy",
        "InvertedPendulum-v5",  # episodes end early, so that there are terminations
        learning_starts=100,
        gradient_steps=1,
        fit_freq=50,
        imagination_kwargs={"freq": 10, "starts_per_step": 5},
        world_model_kwargs={"members": 2, "elites": 1, "hidden": [32]},
        termination_fn=None,  # learned, so that it is judged
        device="cpu",
        seed=0,
    )
    agent.set_logger(Logger(None, [keys]))
    agent.learn(300, log_interval=1)
    ours = {key for key in keys.seen if key.startswith(("model/", "imagination/")) or re.fullmatch(r"time/\w+_s", key)}
    text = (ROOT / "docs" / "mbpo.md").read_text()
    section = text[text.index("## What is logged") : text.index("## When it does not work")]
    explained = set(re.findall(r"`((?:model|imagination|time)/\w+)`", section)) - {
        "model/holdout_loss",
        "model/refit_rows",
    }  # of models with the default fit, and with refit=True
    assert ours == explained


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    generated = {ROOT / "examples" / "reproduce" / "results" / "README.md"}  # by the report of the learning benchmarks
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists() or file in generated, f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}, target


def sh_lines(page: Path) -> list[str]:
    """The commands of a page, one a line, without comments."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), flags=re.S | re.M)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_commands_in_the_docs_are_understood():
    """Every `sb3-mbrl ...` line parses; a renamed option would fail here."""
    from sb3_mbrl.cli.parser import build_parser

    commands = [line.removeprefix("PYTHONPATH=. ") for page in PAGES for line in sh_lines(page)]
    lines = [line.split()[1:] for line in commands if line.startswith("sb3-mbrl ")]
    assert len(lines) > 5
    for line in lines:
        args = build_parser().parse_args(line)
        assert args.command.split() == line[: len(args.command.split())]


def literals_of_the_library() -> str:
    """All texts in the sources, implicit concatenations joined; a placeholder of an f-string separates, as ``...`` does."""
    texts = []
    for path in (ROOT / "sb3_mbrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_in_the_troubleshooting_page_are_verbatim():
    """A reader searches for what was printed. Whoever changes a message changes the page."""
    literals = literals_of_the_library()
    messages = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.S | re.M)
    assert len(messages) > 15
    for message in messages:
        for fragment in message.strip().split("..."):
            words = fragment.strip(" .`")
            assert words in literals, f"{words!r} of {message!r}"


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", "\n".join(page.read_text() for page in PAGES if page.name == "README.md")):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_alone_lists_every_target():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", listed, flags=re.M))
    assert targets >= {"demo", "test", "test-slow", "lint", "format", "bench", "help"}


def test_ci_runs_lint_test_and_conformance():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make lint", "make test", "make docs", "make conformance", "set -euo pipefail"} <= set(
        script.read_text().splitlines()
    )


def test_the_counts_of_the_conformance_suites_in_the_docs_are_those_recorded():
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    for counts in json.loads((ROOT / "tests" / "conformance" / "results.json").read_text()).values():
        assert counts["regressions"] == []
        ours = counts["model_based"]
        assert re.search(rf"{ours['passed']} passed(,| and) {ours['skipped']} skipped", page)
        assert f"the {counts['files']} files of" in page
        assert counts["version"] in page


# ------------------------------------------------------------------------------------------------------------------------ site


def module_of(path: Path) -> ModuleType:
    """Import a file that lies outside every package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_are_mended_for_the_site():
    """What is on the site is linked, what is not is named by its path."""
    mended = module_of(ROOT / "docs" / "conf.py").for_the_site
    root, docs = ROOT, ROOT / "docs"
    assert mended("[a](docs/mbpo.md#settings)", root) == "[a](mbpo.md#settings)"
    assert mended("[a](mbpo.md)", docs, docs) == "[a](mbpo.md)"
    assert mended("[home](../README.md)", docs) == "[home](index.md)"
    assert mended("![a](examples/catch/dream.gif)", root) == "![a](../examples/catch/dream.gif)"
    assert mended("[`contracts.py`](../sb3_mbrl/contracts.py)", docs) == "[`contracts.py`](../sb3_mbrl/contracts.py)"
    assert mended("[a package](../plugins/sb3-mbrl-template)", docs) == "a package (`plugins/sb3-mbrl-template`)"
    assert mended("[CHANGELOG.md](CHANGELOG.md)", root) == "`CHANGELOG.md`"
    assert mended("[a](https://x.org/b.md) [b](#c)", docs) == "[a](https://x.org/b.md) [b](#c)"


def test_every_page_is_in_the_table_of_contents():
    docs = ROOT / "docs"
    for folder in (docs, docs / "api"):
        listed = set(re.findall(r"^([\w/-]+)$", (folder / "index.md").read_text(), flags=re.M))
        assert {path.stem for path in folder.glob("*.md")} - {"index"} == {name for name in listed if name != "api/index"}


def test_every_public_name_is_in_the_reference():
    modules = set(
        re.findall(r"automodule:: (\S+)", "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")))
    )
    for name in modules:
        importlib.import_module(name)
    public = [getattr(sb3_mbrl, name) for name in sb3_mbrl.__all__ if name not in ("__version__", "hookimpl")]
    assert {part.__module__ for part in public} <= modules


# ------------------------------------------------------------------------------------------------------------------- packaging


def test_versions_agree():
    version = sb3_mbrl.__version__
    entry = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert entry is not None
    assert entry[1] == version
    assert importlib.metadata.version("sb3-mbrl") == version


def constraints(file: str = "constraints.txt") -> dict[str, Requirement]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name((requirement := Requirement(line)).name): requirement for line in lines}
    assert len(pins) == len(lines), "a name stands twice"
    return pins


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-dmc.txt"])
def test_constraints_pin_exactly_and_name_no_source(file):
    for name, pin in constraints(file).items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{name}: {pin.specifier}"  # "+cpu" would exclude other builds
        assert pin.url is None
    assert str(constraints(file)["torch"].specifier) == "==2.13.0"


def test_constraints_of_the_control_suite_differ_in_mujoco_alone():
    usual, own = constraints(), constraints("constraints-dmc.txt")
    assert {name for name in usual.keys() & own.keys() if str(usual[name]) != str(own[name])} == {"mujoco"}
    assert usual.keys() - own.keys() == {"mujoco-core", "mujoco-studio"}, "parts of MuJoCo 4"


def test_constraints_are_within_pyprojects_ranges():
    extras = dict(PYPROJECT["project"]["optional-dependencies"])
    usual, suite = constraints(), constraints("constraints-dmc.txt")
    control = [(suite, text) for text in extras.pop("dmc")]
    for pins, text in [
        *((usual, text) for text in itertools.chain(PYPROJECT["project"]["dependencies"], *extras.values())),
        *control,
    ]:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == "sb3-mbrl":
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned"
        (version,) = (one.version for one in pin.specifier)
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


def test_constraints_cover_everything_that_the_dev_extra_installs():
    pins, missing = constraints(), set()
    todo, done = [("sb3-mbrl", ("dev",))], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in done or name.startswith(ACCELERATOR):
            continue
        done.add((name, extras))
        if name not in pins and name != "sb3-mbrl":
            missing.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform or Python version
        for requirement in map(Requirement, required):
            environments = [{"extra": extra} for extra in (*extras, "")]
            if requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments):
                todo.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    assert not missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Build the wheel from a copy, so that nothing is left in the source tree, and return its names."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "sb3_mbrl", folder / "sb3_mbrl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (path,) = folder.glob("sb3_mbrl-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_has_presets_types_and_every_module(wheel):
    assert {"sb3_mbrl/hyperparams/mbpo.yml", "sb3_mbrl/py.typed"} <= wheel
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sb3_mbrl").rglob("*.py")}
    assert sources <= wheel
    assert not [name for name in wheel if name.startswith(("tests", "examples", "plugins"))]


def test_the_command_is_installed():
    (entry,) = [one for one in importlib.metadata.entry_points(group="console_scripts") if one.name == "sb3-mbrl"]
    from sb3_mbrl.cli import main

    assert entry.load() is main


# ------------------------------------------------------------------------------------------------------------------------ demo


def test_the_demo_draws_both_agents(tmp_path, monkeypatch):
    """Run its parts without its processes, since the whole demo takes minutes."""
    demo = module_of(ROOT / "examples" / "demo.py")
    said = []

    class Box:
        def put(self, report):
            said.append(report)

        def is_set(self):
            return False

    results = {name: demo.train(name, 12, 4, 0, Box(), Box()) for name in demo.AGENTS}
    assert [step for step, _ in results["MBPO"].curve] == [4, 8, 12]
    # Before the first update both are the same agent: the control differs in nothing but the model.
    assert results["MBPO"].curve == results["SAC"].curve
    assert [report.step for report in said if report.agent == "SAC"] == list(range(1, 13))
    demo.draw(results, 0, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes()[:4] == b"\x89PNG"
