"""SB3's zip files: reading attributes without unpickling, refusing files of other classes."""

import inspect
import io
import itertools
import json
import pathlib
import zipfile
from collections.abc import Collection
from typing import Any

import cloudpickle
from stable_baselines3.common.save_util import open_path

from sb3_mbrl.checks import did_you_mean

_TELLING: dict[str, tuple[str, ...]] = {
    "top_quantiles_to_drop_per_net": ("TQC",),
    "target_policy_noise": ("TD3", "DDPG"),
    "policy_delay": ("CrossQ",),
    "target_entropy": ("SAC",),
    "exploration_rate": ("DQN", "QRDQN"),
}
"""Attributes by which the classes of a file can be guessed"""


LARGE, MOST = 1 << 26, 100
"""The size in bytes from which the entries of a zip are suspicious that are so many times larger than what is stored"""


def check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """
    Refuse a zip that would fill the memory, or whose entries are ambiguous.

    Stable-Baselines3, PyTorch and NumPy do not compress what they save; whoever packs a file again is far from the limit.

    :param archive: the zip; nothing in it is unpacked
    :param size: the size of its file in bytes
    :raises ValueError: for an entry that is there twice, or is much larger than the file
    """
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ValueError(f"it has two entries {twice!r}")
    for entry in entries:
        if entry.file_size > LARGE and entry.file_size > MOST * entry.compress_size:
            raise ValueError(
                f"its entry {entry.filename!r} would take {entry.file_size / 2**20:,.0f} MiB of memory, and is "
                f"{entry.compress_size / 2**20:,.1f} MiB: nothing that was saved is compressed like this"
            )
    if sum(entry.compress_size for entry in entries) > size:
        raise ValueError("its entries overlap")


def check_archive(path: str | pathlib.Path | io.BufferedIOBase) -> list[str]:
    """
    Check the entries of a checkpoint, and those of the tensor files in it.

    :return: the names of its entries
    :raises ValueError: for a file that would fill the memory, or whose entries are ambiguous
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            check_entries(archive, file.seek(0, io.SEEK_END))
            for name in archive.namelist():
                if name.endswith(".pth"):
                    _check_tensors(archive, name)
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not an agent that was saved with save(): {error}") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)


def _check_tensors(archive: zipfile.ZipFile, name: str) -> None:
    with archive.open(name) as entry:
        if not zipfile.is_zipfile(entry):  # as torch.save writes it since PyTorch 1.6
            raise ValueError(f"its entry {name!r} is no file of PyTorch")
        with zipfile.ZipFile(entry) as tensors:
            try:
                check_entries(tensors, archive.getinfo(name).file_size)
            except ValueError as error:
                raise ValueError(f"in {name!r}, {error}") from error


def saved_attributes(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    Read the attributes in a checkpoint as SB3 writes them: JSON values, and dictionaries that describe what is pickled.
    Nothing is unpickled.

    :raises ValueError: when the file is no zip, or none of SB3's
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            check_entries(archive, file.seek(0, io.SEEK_END))
            attributes = json.loads(archive.read("data"))
        if not isinstance(attributes, dict):
            raise ValueError(f"its 'data' is a JSON {type(attributes).__name__}, not an object")
        return attributes
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, NotImplementedError, EOFError, OSError) as error:
        # JSON's and Unicode's errors are ValueErrors; the last four are those of zips with damaged headers
        raise ValueError(f"{path} is not an agent that was saved with save(): {error}") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)


def qualified_name(cls: type) -> str:
    """The name of a class with its module: two classes may share their names."""
    return f"{cls.__module__}.{cls.__qualname__}"


def name_what_cannot_be_pickled(error: Exception, extras: dict[str, Any]) -> None:
    """Add a note to an error for each value that cannot be pickled."""
    for name, extra in extras.items():
        parts = {f"{name}[{key!r}]": value for key, value in extra.items()} if isinstance(extra, dict) else {name: extra}
        for part, value in parts.items():
            try:
                cloudpickle.dumps(value)
            except Exception as cause:  # whatever an object's own pickling raises
                error.add_note(f"{part} ({type(value).__name__}) cannot be pickled: {type(cause).__name__}: {cause}")


def same_json(given: Any, saved: Any) -> bool:
    """Whether a value would be saved as the JSON value that was saved."""
    try:
        return bool(json.loads(json.dumps(given or {})) == (saved or {}))
    except TypeError:  # saved as a pickle, which is not read here
        return False


def refuse_model_free(cls: Any, path: Any, saved: Collection[str]) -> None:
    """
    Refuse a zip that no model-based class has saved.

    :param cls: the model-based class that is to load it
    :param path: the path of the zip
    :param saved: the names of its attributes
    :raises ValueError: always; the message says which class to use
    """
    own, base = cls.__name__, cls.model_free_class.__name__
    if not {"learning_starts", "train_freq"} <= set(saved):
        raise ValueError(
            f"{path} was not saved by a model-based class: it looks like a file of an on-policy class (PPO, A2C, TRPO). {own} "
            "cannot go on from it; train the on-policy class in a learned model: ModelVecEnv."
        )
    guess = next((classes for name, classes in _TELLING.items() if name in saved), ())
    named, way = " or ".join(guess) or "stable-baselines3", ""
    if base in guess or base not in itertools.chain(*_TELLING.values()):
        way = f"{own}.from_model_free({base}.load(path), env=...)"
    elif len(guess) == 1:
        way = f"model_based({guess[0]}).from_model_free({guess[0]}.load(path), env=...)"
    way = f"; to go on training with a world model: {way}" if way and hasattr(cls, "from_model_free") else ""
    raise ValueError(
        f"{path} was not saved by a model-based class: it looks like a plain {named} file. Load it with the class it was "
        f"saved with{way}."
    )


def check_names(cls: Any, where: str, given: Collection[str], saved: Collection[str]) -> None:
    """
    Refuse misspelt keyword arguments: SB3 makes an attribute of any.

    :param where: the name of the method
    :param given: the names that were given
    :param saved: the names of saved attributes, which may be changed too
    :raises TypeError: for a name that is neither an argument of the constructor nor an attribute
    """
    known = {*inspect.signature(cls.__init__).parameters, *saved}
    for name in given:
        if name not in known:
            raise TypeError(f"{cls.__name__}.{where}(..., {name}=...): there is no such argument.{did_you_mean(name, known)}")
