"""The template plugin as its users get it: a wheel in another environment, found, trained, saved and loaded."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import sb3_mbrl
import sb3_mbrl.plugins.loader as loader
from sb3_mbrl.plugins import UnknownPartError

TEMPLATE = Path(__file__).parents[2] / "plugins" / "sb3-mbrl-template"

TRAIN = """
from sb3_mbrl import MBPO
from sb3_mbrl.plugins import get_registry

agent = MBPO("MlpPolicy", "Pendulum-v1", world_model="template", learning_starts=100, gradient_steps=1, seed=0, device="cpu")
agent.learn(200)
agent.save("agent.zip")
loaded = MBPO.load("agent.zip", device="cpu")
model = loaded.world_model
print("model", type(model).__module__, type(model).__name__, model.fitted, model.n_fits == agent.world_model.n_fits)
print("same", all((model.state_dict()[key] == value).all() for key, value in agent.world_model.state_dict().items()))
(row,) = [row for row in get_registry().report() if row.distribution == "sb3-mbrl-template"]
print("row", row.name, row.kind, row.distribution, row.version, row.status)
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a fresh environment that shares this one's packages, with the wheel installed."""
    folder = tmp_path_factory.mktemp("wheel")
    # Building in place would leave build/ and *.egg-info in the source tree.
    source = shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("sb3_mbrl_template-*.whl")

    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(sb3_mbrl.__file__).parents[1])}
    (site / "shared.pth").write_text("\n".join(sorted(shared)) + "\n")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


@pytest.fixture(scope="module")
def trained(python, tmp_path_factory) -> tuple[Path, list[str]]:
    """The saved agent, and what the training script printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder / "agent.zip", run(python, "-c", TRAIN, cwd=folder).strip().split("\n")


def test_wheel_is_found_trained_saved_and_loaded(trained):
    assert trained[1][-3:] == [
        "model sb3_mbrl_template.model FourierModel True True",
        "same True",
        "row template world_model sb3-mbrl-template 0.1.0 ok",
    ]


def test_loading_without_the_plugin_says_what_to_install(trained, monkeypatch):
    monkeypatch.setattr(loader, "entry_points", lambda group: [])
    with pytest.raises(UnknownPartError) as caught:
        sb3_mbrl.MBPO.load(trained[0], device="cpu")
    assert str(caught.value) == (
        "the saved agent's world model 'template' needs sb3-mbrl-template 0.1.0, which is not installed. "
        "Run `pip install sb3-mbrl-template`."
    )
