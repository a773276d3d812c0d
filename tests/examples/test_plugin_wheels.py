"""Our plug-ins as their users get them: a wheel in another environment, found, tested, trained with, saved and loaded."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import sb3_mbrl
import sb3_mbrl.plugins.loader as loader
from sb3_mbrl.plugins import UnknownPartError

PLUGINS = Path(__file__).parents[2] / "plugins"

MBPO_AGENT = (
    """MBPO("MlpPolicy", "Pendulum-v1", world_model={name!r}, learning_starts=100, gradient_steps=1, seed=0, device="cpu")"""
)
PETS_AGENT = (
    """PETS("MlpPolicy", "Pendulum-v1", world_model={name!r}, learning_starts=100, fit_freq=100, """
    """planner_kwargs={{"population": 4, "horizon": 2}}, seed=0, device="cpu")"""
)
TRAIN = """
from sb3_mbrl import MBPO, PETS
from sb3_mbrl.plugins import get_registry

for agent in ({agents}):
    agent.learn({steps})
    agent.save(type(agent).__name__)
    loaded = type(agent).load(type(agent).__name__, device="cpu")
    model = loaded.world_model
    print(type(agent).__name__, type(model).__module__, type(model).__name__, model.fitted)
    print("same", all((model.state_dict()[key] == value).all() for key, value in agent.world_model.state_dict().items()))
(row,) = [row for row in get_registry().report() if row.distribution == {distribution!r}]
print("row", row.name, row.kind, row.distribution, row.version, row.status)
"""


@dataclass(frozen=True)
class Plugin:
    """The contents of a folder, the name of its model, and the agents to train with it, with their numbers of steps."""

    distribution: str
    name: str
    model: str
    agents: tuple[str, ...]
    steps: int

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")


TEMPLATE = Plugin("sb3-mbrl-template", "template", "FourierModel", (MBPO_AGENT,), 200)
GP = Plugin("sb3-mbrl-gp", "gp", "GPModel", (MBPO_AGENT, PETS_AGENT), 110)


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module", params=[TEMPLATE, GP], ids=lambda plugin: plugin.name)
def installed(request, tmp_path_factory) -> tuple[Plugin, Path]:
    """The interpreter of a fresh environment that shares this one's packages, with the wheel installed."""
    plugin = request.param
    folder = tmp_path_factory.mktemp(plugin.name)
    # Building in place would leave build/ and *.egg-info in the source tree.
    unbuilt = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    source = shutil.copytree(PLUGINS / plugin.distribution, folder / "source", ignore=unbuilt)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob(f"{plugin.package}-*.whl")

    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(sb3_mbrl.__file__).parents[1])}
    (site / "shared.pth").write_text("\n".join(sorted(shared)) + "\n")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return plugin, python


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory) -> tuple[Plugin, Path, list[str]]:
    """The folder of the saved agents, and what the training script printed."""
    plugin, python = installed
    folder = tmp_path_factory.mktemp(f"trained-{plugin.name}")
    agents = "".join(f"{agent.format(name=plugin.name)}, " for agent in plugin.agents)
    script = TRAIN.format(agents=agents, steps=plugin.steps, distribution=plugin.distribution)
    return plugin, folder, run(python, "-c", script, cwd=folder).strip().split("\n")


def test_a_wheel_is_found_trained_saved_and_loaded(trained):
    plugin, _, printed = trained
    expected = []
    for agent in plugin.agents:
        expected += [f"{agent[:4]} {plugin.package}.model {plugin.model} True", "same True"]
    expected.append(f"row {plugin.name} world_model {plugin.distribution} 0.1.0 ok")
    assert [line for line in printed if line.split()[0] in {"MBPO", "PETS", "same", "row"}] == expected


def test_its_own_tests_pass_in_its_environment(installed):
    plugin, python = installed
    tests = PLUGINS / plugin.distribution / "tests"
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=python.parents[2])
    assert " passed" in printed


def test_loading_without_the_plugin_says_what_to_install(trained, monkeypatch):
    plugin, folder, _ = trained
    monkeypatch.setattr(loader, "entry_points", lambda group: [])
    with pytest.raises(UnknownPartError) as caught:
        sb3_mbrl.MBPO.load(folder / "MBPO", device="cpu")
    assert str(caught.value).endswith(
        f"MBPO cannot be loaded: the saved agent's world model {plugin.name!r} needs {plugin.distribution} 0.1.0, which is "
        f"not installed. Run `pip install {plugin.distribution}`."
    )
