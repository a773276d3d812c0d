"""Files that are written whole or not at all, and reach the disk before they replace an older file."""

import errno
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LONG_AGO = 24 * 3600.0
"""The age in seconds from which a temporary file of another machine counts as left behind"""


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Write a file beside the old one, flush it to the disk, then rename it: the old file stays whole until the new one is.

    Temporary files that killed processes have left behind for the same path are removed.

    :param path: the path of the file; a link stays a link
    :param write: writes the file whose path it is given
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.stem}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.new{path.suffix}")
    try:
        write(beside)
        flush(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)
    remove_leftovers(path)


def flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, has reached the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # only POSIX systems open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network drives flush files only
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> list[str]:
    """
    Remove temporary files of :func:`write_beside` whose writer is no longer alive.

    :param path: the file that they were to become
    :return: the names of the files that were removed
    """
    pattern = re.compile(
        rf"\.+{re.escape(path.stem)}\.(?:(?P<machine>[0-9a-f]{{8}})-(?P<process>\d+)-)?[0-9a-f]{{8}}\.new.*{re.escape(path.suffix)}"
    )
    removed = []
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match is None or _is_being_written(entry, match["machine"], match["process"]):
            continue
        entry.unlink(missing_ok=True)
        removed.append(entry.name)
    return removed


def _is_being_written(entry: Path, machine: str | None, process: str | None) -> bool:
    if os.name == "posix" and process is not None and machine == _machine():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's process, which is alive
            return True
        return True
    try:
        return time.time() - entry.stat().st_mtime < _LONG_AGO
    except FileNotFoundError:  # finished in the meantime
        return True


def _machine() -> str:
    """A short text that differs between machines that share a folder: process numbers are those of one machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
