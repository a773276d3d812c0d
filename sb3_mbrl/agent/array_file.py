"""A value in one ``.npz`` file: plain arrays, and JSON that says how they belong together. Nothing in it is pickled."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sb3_mbrl.agent.plain_values import Arrays, decode, encode
from sb3_mbrl.agent.zip_file import check_entries

_JSON = "json"
"""The name of the array that holds the JSON, as UTF-8"""

_OF_DAMAGED_FILES = (
    *(ValueError, KeyError, OSError, EOFError, RecursionError, NotImplementedError, OverflowError, zipfile.BadZipFile),
    MemoryError,  # an array whose header promises more numbers than any file has
)


def write_array_file(path: Path, value: Any, what: str) -> None:
    """
    Write a value.

    :param path: the path of the file
    :param value: nested values, arrays and tensors, see :func:`~sb3_mbrl.agent.plain_values.encode`
    :param what: the name of the kind of value, which is checked when the file is read
    :raises NotPlainError: for a value that can only be pickled; nothing is written then
    """
    arrays: dict[str, np.ndarray] = {}
    content = encode({"what": what, "value": value}, Arrays(arrays), what)
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **{_JSON: text}, **arrays)  # type: ignore[arg-type]


def read_array_file(path: Path | BinaryIO, what: str) -> Any:
    """
    Read a value that :func:`write_array_file` wrote. Nothing is unpickled.

    :raises ValueError: for a file that is damaged, or of another kind
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as stored:
            content = json.loads(stored[_JSON].tobytes())
            if not isinstance(content, dict) or content.get("what") != what:
                raise ValueError(f"it holds no {what}")
            return decode(content, Arrays(stored))["value"]
    except FileNotFoundError:
        raise
    except _OF_DAMAGED_FILES as error:
        raise ValueError(f"{getattr(path, 'name', path)} is not a {what} that can be read: {error}") from error


def _check_size(path: Path | BinaryIO) -> None:
    """:raises ValueError: for a file that would fill the memory; its position stays"""
    if isinstance(path, Path):
        with path.open("rb") as file:
            _check_size(file)
        return
    place = path.tell()
    with zipfile.ZipFile(path) as archive:
        check_entries(archive, path.seek(0, io.SEEK_END))
    path.seek(place)


def is_array_file(file: BinaryIO) -> bool:
    """Tell whether an open file begins like an ``.npz`` file; its position stays."""
    place = file.tell()
    begins = file.read(4)
    file.seek(place)
    return begins == b"PK\x03\x04"
