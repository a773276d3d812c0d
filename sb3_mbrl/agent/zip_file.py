"""Stable-Baselines3's zip files: what is in one, who saved it, and writing one whole or not at all."""

import inspect
import io
import itertools
import json
import os
import pathlib
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import cloudpickle
from stable_baselines3.common.save_util import open_path

from sb3_mbrl.plugins.errors import did_you_mean

_TELLING: dict[str, tuple[str, ...]] = {
    "top_quantiles_to_drop_per_net": ("TQC",),
    "target_policy_noise": ("TD3", "DDPG"),
    "policy_delay": ("CrossQ",),
    "target_entropy": ("SAC",),
    "exploration_rate": ("DQN", "QRDQN"),
}
"""By which attribute a class is known"""

_reading: ContextVar[bool] = ContextVar("reading a checkpoint", default=False)
"""Whether a model-based class is loading"""


@contextmanager
def reading_guarded() -> Iterator[None]:
    """While one of our classes loads, a :class:`Guard` is let through."""
    before = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(before)


class Guard:
    """
    Stops a model-free class that opens a model-based checkpoint. SB3 would fail too, but with the words ``KeyError:
    'policy.optimizer'``.

    :param saved_by: the name of the class
    :param can_do_without: whether it has ``to_model_free``
    """

    def __init__(self, saved_by: str, can_do_without: bool = True) -> None:
        self.saved_by, self.can_do_without = saved_by, can_do_without

    def __reduce__(self) -> Any:
        return _unpickle_guard, (self.saved_by, self.can_do_without)


def _unpickle_guard(saved_by: str, can_do_without: bool = True) -> Guard:
    if not _reading.get():
        more = f"; without its world model: {saved_by}.load(path).to_model_free()" if can_do_without else ""
        raise ValueError(f"This checkpoint was saved by {saved_by}. Load it with {saved_by}.load(path){more}")
    return Guard(saved_by, can_do_without)


def saved_attributes(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    The attributes in a checkpoint as SB3 writes them: JSON, and dictionaries that describe what is pickled. Nothing is
    unpickled.

    :raises ValueError: when it is no zip file, or none of SB3's
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            attributes = json.loads(archive.read("data"))
        if not isinstance(attributes, dict):
            raise ValueError(f"its 'data' is a JSON {type(attributes).__name__}, not an object")
        return attributes
    except (zipfile.BadZipFile, KeyError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{path} is not an agent that was saved with save(): {error}") from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
        else:
            file.seek(0)


def qualified_name(cls: type) -> str:
    """Two classes may have the same name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def write_beside(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """
    Write beside, then rename: the old file stays whole until the new one is.

    :param path: the file in the end; a link stays one
    :param write: writes the file that it is given
    """
    path = pathlib.Path(os.path.realpath(path))
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.new{path.suffix}")
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def name_what_cannot_be_pickled(error: Exception, extras: dict[str, Any]) -> None:
    for name, extra in extras.items():
        parts = {f"{name}[{key!r}]": value for key, value in extra.items()} if isinstance(extra, dict) else {name: extra}
        for part, value in parts.items():
            try:
                cloudpickle.dumps(value)
            except Exception as cause:  # whatever an object's own pickling raises
                error.add_note(f"{part} ({type(value).__name__}) cannot be pickled: {type(cause).__name__}: {cause}")


def same_json(given: Any, saved: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(given or {})) == (saved or {}))
    except TypeError:  # saved as a pickle, whose content is not known here
        return False


def refuse_model_free(cls: Any, path: Any, saved: Collection[str]) -> None:
    """
    :param cls: the model-based class that is to load it
    :param path: of a zip that no model-based class has saved
    :param saved: names of its attributes
    :raises ValueError: always
    """
    own, base = cls.__name__, cls._model_free_class.__name__
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


def check_names(cls: type, where: str, given: Collection[str], saved: Collection[str]) -> None:
    """
    SB3 makes an attribute of any keyword argument; a misspelt one would go unnoticed.

    :param where: the method
    :param saved: the names of saved attributes, which may be changed too
    :raises TypeError: for a name that is neither an argument of the constructor nor an attribute
    """
    known = {*inspect.signature(cls.__init__).parameters, *saved, "_without_model"}  # type: ignore[misc]
    for name in given:
        if name not in known:
            raise TypeError(f"{cls.__name__}.{where}(..., {name}=...): there is no such argument.{did_you_mean(name, known)}")
