"""The manifest of a folder: its files with their checksums, by which damage is noticed before anything is read."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_mbrl.agent.whole_files import flush

MANIFEST = "manifest.json"

FORMAT = 1
"""The number of the layout of sets; a higher one was written by a later version"""


class DamagedError(ValueError):
    """A file that is not as it was written; the message names it."""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """
    Write the manifest of all files in a folder, as the last of them, and flush everything to the disk.

    :param folder: the folder
    :param facts: JSON values about the files, which the manifest holds too
    """
    files = {path.name: {"bytes": path.stat().st_size, "sha256": checksum(path)} for path in sorted(folder.iterdir())}
    for name in files:
        flush(folder / name)
    content = {"format": FORMAT, **facts, "files": files}
    (folder / MANIFEST).write_bytes(_text({**content, "checksum": _checksum_of(content)}))
    flush(folder / MANIFEST)
    flush(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    Read the manifest of a folder.

    :raises DamagedError: when there is none, or it is not as it was written
    """
    path = folder / MANIFEST
    try:
        written = path.read_bytes()
        manifest = json.loads(written)
        # Compared byte by byte, so that a change of a space is noticed too.
        content = {name: value for name, value in manifest.items() if name != "checksum"}
        intact = written == _text(manifest) and manifest["checksum"] == _checksum_of(content)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: the folder was not written to its end") from error
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if not intact:
        raise DamagedError(f"{path} is damaged: its checksum is another one")
    number = manifest.get("format")
    if number != FORMAT:
        raise DamagedError(f"{path} was written by another version of sb3-mbrl (format {number}, not {FORMAT})")
    files = manifest.get("files")
    if not (isinstance(files, dict) and all(_is_entry(name, entry) for name, entry in files.items())):
        raise DamagedError(f"{path} is damaged: it does not list the files of the folder")
    return manifest


def _is_entry(name: str, entry: Any) -> bool:
    expected = {"bytes": int, "sha256": str}
    inside = Path(name).name == name
    return inside and isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in expected.items())


def verify(folder: Path) -> dict[str, Any]:
    """
    Compare all files of a folder with its manifest.

    :return: the manifest
    :raises DamagedError: when one is missing, incomplete or damaged; the message names it
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        _compare(folder / name, expected)
    return manifest


def verify_file(path: Any, suffix: str) -> None:
    """
    Compare one file with the manifest beside it, if there is one that lists it.

    :param path: the path of the file; anything that is no path is not checked
    :param suffix: the suffix of the file where the path may lack it
    :raises DamagedError: when the file or the manifest is damaged
    """
    if not isinstance(path, (str, Path)):
        return
    given = Path(path)
    file = Path(os.path.realpath(given if given.exists() else f"{given}.{suffix}"))
    if not file.is_file() or not (file.parent / MANIFEST).is_file():
        return
    files = read_manifest(file.parent)["files"]
    if file.name in files:
        _compare(file, files[file.name])


def checksum(path: Path) -> str:
    """Compute the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DamagedError(f"{path} is damaged: it has {size} bytes, and had {expected['bytes']} when it was written")
    if checksum(path) != expected["sha256"]:
        raise DamagedError(f"{path} is damaged: its checksum is not the one that {MANIFEST} lists")


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _checksum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
