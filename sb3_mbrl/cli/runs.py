"""The folder of a run: what is kept in it, finding it again, and saving so that nothing is ever half written."""

import json
import re
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_mbrl.agent.zip_file import saved_attributes, write_beside
from sb3_mbrl.algorithms.model_based import BY_NAME, model_based_by_name
from sb3_mbrl.cli.values import UserError
from sb3_mbrl.plugins import Registry, get_registry

MODEL, REPLAY_BUFFER, RECORD = "model.zip", "replay_buffer.pkl", "run.json"


@dataclass
class Run:
    """
    What ``evaluate`` and ``--resume`` have to know (``run.json``).

    :param algo: name of the algorithm
    :param env_id: Gymnasium id
    :param steps: real environment steps in all
    :param seed: of agent and environments
    :param n_envs: environments side by side
    :param env_kwargs: of ``gymnasium.make``
    :param plugins: modules or names given with ``--plugin``
    :param arguments: of the algorithm's constructor, for the reader
    :param tensorboard: folder of its TensorBoard logs, if it writes any
    """

    algo: str
    env_id: str
    steps: int
    seed: int
    n_envs: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    tensorboard: str | None = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, default=str)
        write_beside(folder / RECORD, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> "Run | None":
        """The record in a folder, if there is one."""
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is not the record of a run: {error}") from error


def save(agent: OffPolicyAlgorithm, folder: Path) -> None:
    """Save agent and replay buffer. A second Ctrl-C waits until that is done."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        write_beside(folder / MODEL, agent.save)
        write_beside(folder / REPLAY_BUFFER, agent.save_replay_buffer)
    finally:
        signal.signal(signal.SIGINT, before)


def load(cls: type[OffPolicyAlgorithm], path: Path, **kwargs: Any) -> Any:
    """
    :param cls: the algorithm
    :param path: of the zip
    :param kwargs: of ``cls.load``
    :raises UserError: for a file that is missing, broken, or another algorithm's
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        return cls.load(path, **kwargs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be loaded as {cls.__name__}: {_words(error)}{_right_option(path, cls)}") from error


def saved_algorithm(registry: Registry, path: Path) -> str | None:
    """On command lines, the name of the algorithm that a checkpoint is of; ``None`` where it does not say."""
    try:
        saved_by = saved_attributes(path).get("saved_by") or {}
    except ValueError:
        return None
    base = saved_by.get("base", "").rpartition(".")[2]
    named = {"SAC": "mbpo", "DQN": "dyna", **{of: name for name, of in BY_NAME.items()}}
    for spec in registry.specs("algorithm"):
        factory = spec.factory if isinstance(spec.factory, str) else getattr(spec.factory, "__name__", "")
        named[factory.rpartition(":")[2]] = spec.name
    return named.get(saved_by.get("algorithm") or base)


def _right_option(path: Path, cls: type) -> str:
    """What to write on the command line for the checkpoint of another algorithm."""
    registry = get_registry()
    name = saved_algorithm(registry, path)
    return f" Here: --algo {name}" if name and algorithm(registry, name) is not cls else ""


def _words(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _series(algo: str, env_id: str) -> tuple[Path, str]:
    return Path("runs") / re.sub(r"[^\w.-]+", "-", algo), re.sub(r"[^\w.-]+", "-", env_id)


def _numbered(algo: str, env_id: str) -> dict[int, Path]:
    parent, stem = _series(algo, env_id)
    paths = parent.glob(f"{stem}_*") if parent.is_dir() else ()
    return {int(number): path for path in paths if (number := path.name.removeprefix(f"{stem}_")).isdigit()}


def new_folder(algo: str, env_id: str) -> Path:
    """The next free ``runs/ALGO/ENV_n``."""
    parent, stem = _series(algo, env_id)
    return parent / f"{stem}_{max(_numbered(algo, env_id), default=0) + 1}"


def newest_folder(algo: str, env_id: str) -> Path:
    """The newest run that was saved."""
    saved = {number: path for number, path in _numbered(algo, env_id).items() if (path / MODEL).is_file()}
    if not saved:
        raise UserError(f"--resume: there is no run of {algo} on {env_id} under runs/; name its folder with --output")
    return saved[max(saved)]


def check_device(name: str) -> None:
    """:raises UserError: for one that is not there"""
    try:
        th.zeros(1, device=get_device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).strip().splitlines()[0]}") from error


def plugin_arguments(plugins: list[Any]) -> dict[str, Any]:
    """For the constructor and ``load``."""
    # An algorithm without the argument works as long as nobody needs it.
    return {"plugins": plugins} if plugins else {}


def algorithm(registry: Registry, name: str) -> type[OffPolicyAlgorithm]:
    """An algorithm by its name."""
    if name in BY_NAME:
        try:
            return model_based_by_name(name)
        except ImportError as error:
            raise UserError(f"--algo {name}: {error}. Run `pip install sb3-contrib`.") from error
    cls = registry.resolve("algorithm", name).factory
    if not (isinstance(cls, type) and issubclass(cls, OffPolicyAlgorithm)):
        raise UserError(f"--algo {name}: {cls} is not an off-policy algorithm class of Stable-Baselines3")
    return cls
