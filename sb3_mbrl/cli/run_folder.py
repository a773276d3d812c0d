"""The folder of a run: its record and its checkpoints, reserving it, and finding it again."""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.agent.agent import OffPolicyAgent
from sb3_mbrl.agent.checkpoint import STATE
from sb3_mbrl.agent.whole_files import write_beside
from sb3_mbrl.agent.zip_file import saved_attributes
from sb3_mbrl.algorithms.model_based import BY_NAME
from sb3_mbrl.checkpoints import CheckpointFolder, CheckpointSet, FolderInUseError
from sb3_mbrl.checkpoints.checkpoint_set import MODEL, NORMALISING, PICKLED_BUFFER, PLAIN_BUFFER
from sb3_mbrl.checkpoints.folder import LATEST
from sb3_mbrl.cli.model_free import NAMES, is_model_free, load_model_free
from sb3_mbrl.cli.normalize import CHOICES, find_statistics, with_statistics
from sb3_mbrl.cli.progress import waiting
from sb3_mbrl.cli.seal import is_sealed, seal
from sb3_mbrl.cli.values import (
    DEFAULT_ALGORITHM,
    UserError,
    algorithm_class,
    check_device,
    load_plugins,
    make_env,
    parse_pairs,
    plugin_arguments,
)
from sb3_mbrl.contracts import AlgorithmSpec
from sb3_mbrl.diagnostics.dream import check_same_spaces
from sb3_mbrl.plugins import Registry, get_registry

CHECKPOINTS, RECORD = "checkpoints", "run.json"

_LINKED = {
    MODEL: (MODEL,),
    PLAIN_BUFFER: (PLAIN_BUFFER,),
    PICKLED_BUFFER: (PICKLED_BUFFER, PLAIN_BUFFER),  # scripts for earlier versions ask for this name
    NORMALISING: (NORMALISING,),
}
"""The links in the folder of a run, and which file of the newest checkpoint each leads to: the first that there is"""


@dataclass
class Run:
    """
    A run's record (``run.json``), which ``evaluate``, ``plot`` and ``--resume`` read.

    :param algo: the name of the algorithm
    :param env_id: the Gymnasium id of the environment
    :param steps: the number of real environment steps in all
    :param seed: the seed of agent and environments
    :param n_envs: the number of environments side by side
    :param env_kwargs: the arguments of ``gymnasium.make``
    :param plugins: the modules or names given with ``--plugin``
    :param arguments: the arguments of the algorithm's constructor; only for people who read the file
    :param tensorboard: the folder of the TensorBoard logs, if any
    :param normalize: what ``VecNormalize`` normalises: ``"both"``, ``"obs"`` or ``"reward"``; ``None``: there is none
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
    normalize: str | None = None
    own: bool = field(default=True, compare=False)
    """Whether this user has written the record"""

    def write(self, folder: Path) -> None:
        """Write the record, with a checksum and the user's seal."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {name: value for name, value in asdict(self).items() if name != "own"}
        record = json.loads(json.dumps(record, default=str))
        content = _canonical(record)
        record |= {"checksum": hashlib.sha256(content).hexdigest(), "seal": seal(content)}
        text = json.dumps(record, indent=2)
        write_beside(folder / RECORD, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> "Run | None":
        """
        Read the record in a folder, if there is one.

        :raises UserError: for a record that is damaged, or holds values that no run has
        """
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                raise ValueError(f"it holds a JSON {type(record).__name__}, not an object")
            checksum, sealed = record.pop("checksum", None), record.pop("seal", None)
            _check_record(record)
        except (ValueError, TypeError, RecursionError, OSError) as error:
            raise UserError(f"{path} is not the record of a run: {error}") from error
        content = _canonical(record)
        if checksum is not None and checksum != hashlib.sha256(content).hexdigest():
            raise UserError(
                f"{path} is damaged, or was changed: its content does not fit its checksum. If you changed it on purpose, "
                "remove the line with the checksum"
            )
        return cls(**record, own=is_sealed(content, sealed))

    def check_trusted(self, folder: Path, algo: str | None, env: str | None, plugins: Sequence[str]) -> None:
        """
        Refuse to import modules for a record that somebody else has written.

        :param folder: the folder of the run
        :param algo: the algorithm that the user named on the command line
        :param env: the environment that the user named
        :param plugins: the plug-ins that the user named
        :raises UserError: for a module that the user has not named, and that is of no installed distribution
        """
        if self.own:
            return
        named = [("--algo", self.algo, algo or ""), ("--env", self.env_id, env or "")]
        modules = [(option, name, name.partition(":")[0]) for option, name, given in named if ":" in name and name != given]
        modules += [("--plugin", name, name) for name in self.plugins if name not in plugins]
        for option, name, module in modules:
            if not _is_installed(module):
                raise UserError(
                    f"{folder / RECORD} was not written by you, and names the module {module!r}, which would be imported. If "
                    f"you trust it, name it yourself: {option} {name}"
                )

    def trusted_parts(self) -> list[str]:
        """The parts that this user chose as ``package.module:Class`` when the run began"""
        choices = (self.arguments.get(name) for name in ("world_model", "planner", "imagination"))
        return [choice for choice in choices if self.own and isinstance(choice, str) and ":" in choice]


def _check_record(record: dict[str, Any]) -> None:
    """:raises ValueError: for values that no run has; the message names the first"""
    known = {one.name: one for one in fields(Run) if one.name != "own"}
    if unknown := [name for name in record if name not in known]:
        raise ValueError(f"it has the unknown entry {unknown[0]!r}")
    if missing := [name for name in ("algo", "env_id", "steps", "seed", "n_envs") if name not in record]:
        raise ValueError(f"it lacks {missing[0]!r}")
    kinds = {"algo": str, "env_id": str, "env_kwargs": dict, "plugins": list, "arguments": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name, kind()), kind) or (kind is str and not record[name]):
            raise ValueError(f"{name} is {record[name]!r}")
    for name, low, high in (("steps", 1, 2**63), ("seed", 0, 2**32), ("n_envs", 1, 2**16)):
        value = record[name]
        if type(value) is not int or not low <= value < high:
            raise ValueError(f"{name} is {value!r}: it must be a whole number from {low} on")
    if not all(isinstance(name, str) and re.fullmatch(r"[\w.:-]+", name) for name in record.get("plugins", ())):
        raise ValueError(f"plugins is {record['plugins']!r}")
    if not isinstance(record.get("tensorboard"), (str, type(None))):
        raise ValueError(f"tensorboard is {record['tensorboard']!r}")
    if record.get("normalize") not in (None, *CHOICES):
        raise ValueError(f"normalize is {record['normalize']!r}: it must be one of {', '.join(CHOICES)}")


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def _is_installed(module: str) -> bool:
    """Tell whether a module is loaded already, an installed plug-in's name, or of an installed distribution."""
    top = module.partition(".")[0]
    if module in sys.modules or top in importlib.metadata.packages_distributions():
        return True
    return any(plugin.origin.is_called(module) for plugin in get_registry().plugins)


# ------------------------------------------------------------------------------------------------------------------- folders


def new_folder(algo: str, env_id: str) -> Path:
    """Make the next free ``runs/ALGO/ENV_n``: of several processes, each gets a folder of its own."""
    parent, stem = _series(algo, env_id)
    parent.mkdir(parents=True, exist_ok=True)
    number = max(_numbered(algo, env_id), default=0) + 1
    while True:
        folder = parent / f"{stem}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def newest_folder(algo: str, env_id: str) -> Path:
    """
    Find the newest run that was saved.

    :raises UserError: when there is none
    """
    saved = {number: path for number, path in _numbered(algo, env_id).items() if RunFolder(path).is_used()}
    if not saved:
        raise UserError(f"--resume: there is no run of {algo} on {env_id} under runs/; name its folder with --output")
    return saved[max(saved)]


def _numbered(algo: str, env_id: str) -> dict[int, Path]:
    parent, stem = _series(algo, env_id)
    paths = parent.glob(f"{stem}_*") if parent.is_dir() else ()
    return {int(number): path for path in paths if (number := path.name.removeprefix(f"{stem}_")).isdigit()}


def _series(algo: str, env_id: str) -> tuple[Path, str]:
    return Path("runs") / re.sub(r"[^\w.-]+", "-", algo), re.sub(r"[^\w.-]+", "-", env_id)


# ---------------------------------------------------------------------------------------------------------- saving, loading


class RunFolder:
    """
    The folder of a run, whose checkpoints are in ``checkpoints/``; the files of the newest one are linked from the folder.

    :param path: the folder
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / CHECKPOINTS)

    def acquire(self) -> None:
        """
        Reserve the folder for this process.

        :raises UserError: when another run has it, or it cannot be written to
        """
        try:
            if removed := self.checkpoints.acquire():
                print(f"Removed {len(removed)} unfinished checkpoint(s) of a run that was killed while it saved")
        except FolderInUseError as error:
            raise UserError(f"{self.path} is in use by another run: wait for its end, or choose another --output") from error
        except OSError as error:
            raise UserError(f"--output {self.path}: it cannot be written to ({error.strerror})") from error

    def is_used(self) -> bool:
        """Tell whether a run has saved something here."""
        return bool(self.checkpoints.sets()) or (self.path / MODEL).exists()

    def save(self, agent: OffPolicyAlgorithm) -> CheckpointSet:
        """
        Save a checkpoint.

        :raises OSError: when nothing could be saved
        """
        saved = self.checkpoints.save(agent)
        self.link_newest()
        return saved

    def link_newest(self) -> None:
        """Link the files of the newest checkpoint from the folder; where there are no links, they are copied."""
        sets = self.checkpoints.sets()
        try:
            if sets:
                self._link(sets[-1].path)
        except OSError as error:  # the checkpoint itself is saved
            print(f"{self.path}: the files of {sets[-1].path} could not be linked: {error}")

    def _link(self, newest: Path) -> None:
        latest = self.checkpoints.path / LATEST
        for link, names in _LINKED.items():
            place, name = self.path / link, next((name for name in names if (newest / name).is_file()), None)
            if name is None:
                place.unlink(missing_ok=True)  # of an older checkpoint: it would not fit the other files
            elif latest.is_symlink():
                target = os.path.join(CHECKPOINTS, LATEST, name)
                if not (place.is_symlink() and os.readlink(place) == target):
                    write_beside_link(place, target)
            else:
                write_beside(place, functools.partial(shutil.copyfile, newest / name))

    def newest(self) -> CheckpointSet | None:
        """Find the newest intact checkpoint, and print what is damaged; ``None``: there are no checkpoints."""
        found = self.checkpoints.newest()
        for sentence in found.damaged:
            print(f"Damaged: {sentence}")
        if found.chosen is not None:
            if found.damaged:
                print(f"Using the newest checkpoint that is intact: {found.chosen.path}")
            if found.incomplete is not None:
                print(
                    f"Using {found.chosen.path}, the newest checkpoint with a replay buffer; {found.incomplete.path} is "
                    "newer, but lacks its own"
                )
        elif found.damaged:
            raise UserError(f"no checkpoint in {self.checkpoints.path} is intact: {found.damaged[0]}")
        return found.chosen


def write_beside_link(place: Path, target: str) -> None:
    """Make a link that takes the place of a file or link of this name at once."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.link")
    os.symlink(target, temporary)
    os.replace(temporary, place)


def load_agent(cls: type[OffPolicyAlgorithm], path: Path, **kwargs: Any) -> Any:
    """
    Load an agent.

    :param cls: the class of the algorithm
    :param path: the path of the zip
    :param kwargs: the other arguments of ``cls.load``
    :raises UserError: for a file that is missing, broken, or another algorithm's
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        return cls.load(path, **kwargs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be loaded as {cls.__name__}: {_message(error)}{_right_option(path, cls)}") from error


def trust_arguments(cls: type[OffPolicyAlgorithm], safe: bool, trust: Sequence[str]) -> dict[str, Any]:
    """
    Make the keyword arguments of ``load`` by which a user trusts a file, or does not.

    :param cls: the class of the algorithm
    :param safe: whether to refuse pickles
    :param trust: the modules and parts that the file may name
    :raises UserError: for a class that cannot load safely
    """
    if issubclass(cls, OffPolicyAgent):
        return {"safe": safe, "trust": list(trust)}
    if safe:
        raise UserError(f"--safe: {cls.__name__} is no class of sb3-mbrl, and its files are pickles")
    return {}


class Saved(NamedTuple):
    """A saved agent, and the environment that it is played in."""

    agent: Any
    """An agent of ours, or one of SB3's"""
    env_id: str
    """The Gymnasium id of the environment"""
    env_kwargs: dict[str, Any]
    """The arguments of ``gymnasium.make``"""
    folder: Path
    """The folder that was named, or that the agent's file is in"""


def load_saved(args: argparse.Namespace) -> Saved:
    """
    Load the agent of ``evaluate`` and ``plot``; options come before what the run's record says.

    :raises UserError: when there is no such file, or the record lacks what no option gives
    """
    path = Path(args.model)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        newest = RunFolder(path).newest()
        path = path / MODEL if newest is None else newest.model
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_device(args.device)
    run = Run.read(folder)
    if run is not None:
        # What the command line names replaces what the record names.
        named = args.plugin if args.plugin is not None else []
        replace(run, plugins=[] if named else run.plugins).check_trusted(folder, args.algo or None, args.env or None, named)
    env_id = args.env or (run.env_id if run else None)
    if env_id is None:
        raise UserError(f"which environment? --env ID (there is no {RECORD} beside {path})")
    env_kwargs = {**(run.env_kwargs if run and env_id == run.env_id else {}), **parse_pairs("--env-kwargs", args.env_kwargs)}
    statistics = find_statistics(path, env_id, args.vecnormalize)
    if run is not None and run.normalize is not None and statistics is None:
        raise UserError(f"{folder} is a run with --normalize, and {NORMALISING} is missing: name one with --vecnormalize")
    model_free = is_model_free(path) and (args.algo is None or args.algo.lower() in NAMES)
    if args.safe and (model_free or (statistics is not None and statistics.suffix != ".npz")):
        raise UserError(f"--safe: {path if model_free else statistics} is a file of Stable-Baselines3, which is a pickle")
    env = None
    if statistics is not None:
        print(f"Observations are normalised by {statistics}")
        env = with_statistics(statistics, make_vec_env(lambda: make_env(env_id, env_kwargs)), training=False)
    loading = waiting(f"Loading {path} ...", not args.no_progress)
    if model_free:
        with loading:
            agent = load_model_free(path, args.algo, env=env, device=args.device)
        return Saved(agent, env_id, env_kwargs, path.parent)
    plugins, registry = load_plugins(args.plugin or (run.plugins if run else None))
    algo = args.algo or (run.algo if run else None) or saved_algorithm(registry, path) or DEFAULT_ALGORITHM
    cls, trust = algorithm_class(registry, algo), [*(args.trust or ()), *(run.trusted_parts() if run else ())]
    arguments = {**plugin_arguments(plugins), **trust_arguments(cls, args.safe, trust)}
    with loading:
        agent = load_agent(cls, path, env=env, device=args.device, **arguments)
    if statistics is None and agent.real.were_normalised:
        print(
            f"{path} was trained behind VecNormalize, and its statistics are not beside it, so the agent sees other numbers "
            "than in training: name the file with --vecnormalize FILE",
            file=sys.stderr,
        )
    return Saved(agent, env_id, env_kwargs, folder)


def check_spaces(agent: Any, env: Any, env_id: str) -> None:
    """:raises UserError: for an environment whose spaces are not those that the agent was trained in"""
    try:
        check_same_spaces(agent, env, f"{env_id} with these arguments")
    except ValueError as error:
        raise UserError(str(error)) from error


def saved_algorithm(registry: Registry, path: Path) -> str | None:
    """
    Read from a checkpoint which algorithm saved it.

    :return: its name on command lines; ``None`` where the checkpoint does not say
    """
    try:
        saved_by = saved_attributes(path).get(STATE, {}).get("saved_by", {})
    except ValueError:
        return None
    # From the name of a class to the name of an algorithm. A model-free base stands for a subclass of a user's, whose own
    # name nobody registered.
    names = {base: name for name, base in BY_NAME.items()}
    for spec in registry.specs("algorithm"):
        if isinstance(spec, AlgorithmSpec) and spec.base:
            names.setdefault(spec.base, spec.name)
        factory = spec.factory if isinstance(spec.factory, str) else getattr(spec.factory, "__name__", "")
        names[factory.rpartition(":")[2]] = spec.name
    base = saved_by.get("base", "").rpartition(".")[2]
    return names.get(saved_by.get("algorithm") or base)


def _right_option(path: Path, cls: type) -> str:
    """Name the ``--algo`` to give, for the checkpoint of another algorithm."""
    registry = get_registry()
    name = saved_algorithm(registry, path)
    return f" Here: --algo {name}" if name and algorithm_class(registry, name) is not cls else ""


def _message(error: Exception) -> str:
    # str() of a KeyError puts its message in quotes.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
