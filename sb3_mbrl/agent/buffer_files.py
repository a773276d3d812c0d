"""Saved replay buffers: pickles with a checksum, which SB3 reads too, and plain arrays, which are read without unpickling.

The pickle is followed by a mark and the SHA-256 of all bytes before it. Reading a pickle ends at its own last byte, so SB3's
classes do not notice.
"""

import copy
import hashlib
import io
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.save_util import open_path

from sb3_mbrl.agent.array_file import is_array_file, read_array_file, write_array_file
from sb3_mbrl.agent.manifest import verify_file
from sb3_mbrl.agent.whole_files import write_beside

MARK = b"\nsb3-mbrl sha256\n"
"""The bytes between the pickle and its checksum"""

_LENGTH = len(MARK) + hashlib.sha256().digest_size

_WHAT = "replay buffer"

_ROWS = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "dones",
    "timeouts",
    "infos",
    "ep_start",
    "ep_length",
)
"""The arrays of SB3's buffers that have one row per position; those that were never filled are not stored"""

_OF_WRONG_VALUES = (
    *(KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError),
    MemoryError,  # a buffer_size that no machine has room for
)
"""The errors of code that was given values of other types or sizes than it has saved"""


# ---- pickles


def save_pickled(save_by_sb3: Callable[[Any], None], path: Any) -> None:
    """
    Write a pickle with a checksum, whole or not at all.

    :param save_by_sb3: SB3's ``save_replay_buffer``
    :param path: as in SB3
    """
    if not isinstance(path, (str, pathlib.Path)):
        _write_with_checksum(save_by_sb3, open_path(path, "w", suffix="pkl"))
        return
    target = pathlib.Path(path)
    if target.suffix == "":  # SB3's rules
        target = target.with_name(f"{target.name}.pkl")
    if target.is_dir():
        warnings.warn(f"Path '{target}' is a folder. Will save instead to {target}_2", stacklevel=3)
        target = target.with_name(f"{target.name}_2")
    target.parent.mkdir(parents=True, exist_ok=True)

    def write(beside: pathlib.Path) -> None:
        with beside.open("wb") as file:
            _write_with_checksum(save_by_sb3, file)

    write_beside(target, write)


def _write_with_checksum(save_by_sb3: Callable[[Any], None], file: Any) -> None:
    hashing = _Hashing(file)
    with io.BufferedWriter(hashing) as writer:
        save_by_sb3(writer)
    file.write(MARK + hashing.digest())


class _Hashing(io.RawIOBase):
    """
    A file that computes the checksum of what is written to it. Closing it leaves the file below open.

    :param file: the file below
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._file.write(content)
        self._hash.update(content)
        return memoryview(content).nbytes

    def digest(self) -> bytes:
        return self._hash.digest()


def load(load_by_sb3: Callable[[Any], None], path: Any, safe: bool) -> ReplayBuffer | None:
    """
    Read a saved replay buffer.

    :param load_by_sb3: SB3's ``load_replay_buffer``, for pickles; puts the buffer into the agent
    :param path: as in SB3
    :param safe: whether to refuse pickles
    :return: the buffer, if the file holds plain arrays; ``None`` after SB3 has read a pickle
    :raises ValueError: for a file that is damaged, holds no replay buffer, or is a pickle where that is refused; the message
        names it
    """
    try:
        file: Any = open_path(path, "r", suffix="pkl")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no replay buffer {path}") from error
    name = getattr(file, "name", path)
    try:
        verify_file(name, "pkl")
        if file.seekable() and is_array_file(file):
            saved = read_array_file(file, _WHAT)
            try:
                return from_plain(saved)
            except _OF_WRONG_VALUES as error:
                raise ValueError(f"{name} is not a replay buffer that can be read: {error}") from error
        if safe:
            raise ValueError(
                f"{name} is a pickle, which can run any code when it is loaded: safe=True refuses it. Load it without "
                "safe=True if you trust whoever wrote it"
            )
        marked = file.seekable() and _verify_checksum(file, name)
        try:
            load_by_sb3(file)
        except Exception as error:  # whatever a damaged or foreign pickle raises
            raise ValueError(f"{name} is not a replay buffer that was saved with save_replay_buffer(): {error!r}") from error
        if file is not path and not marked and file.read(1):
            raise ValueError(f"{name} is damaged: there is something behind the replay buffer that is no checksum")
        return None
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()


def _verify_checksum(file: BinaryIO, name: Any) -> bool:
    """
    Compare a pickle with its checksum; the position in the file stays.

    :return: whether there is a checksum; a file of SB3 has none
    """
    begin = file.tell()
    length = file.seek(0, io.SEEK_END) - begin - _LENGTH
    if length < 0:
        file.seek(begin)
        return False
    file.seek(begin + length)
    ending = file.read(_LENGTH)
    file.seek(begin)
    if not ending.startswith(MARK):
        return False
    computed = hashlib.sha256()
    left = length
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        computed.update(part)
        left -= len(part)
    file.seek(begin)
    if computed.digest() != ending[len(MARK) :]:
        raise ValueError(f"{name} is damaged: its content does not fit its checksum")
    return True


# ---- plain arrays


def save_plain(buffer: ReplayBuffer, side: dict[str, Any], path: pathlib.Path) -> None:
    """
    Write a replay buffer as plain arrays, as far as it is filled.

    :param buffer: a buffer of one of SB3's classes
    :param side: what is saved with it
    :param path: the path of the file
    :raises NotPlainError: for a buffer that can only be pickled, such as one of a user's class
    """
    # One row more: with ``optimize_memory_usage`` the next observation of the newest row is there.
    rows = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
    state = {name: value for name, value in vars(buffer).items() if name != "env"}
    for name in _ROWS:
        if name in state:
            whole = state[name]
            cut = {key: array[:rows] for key, array in whole.items()} if isinstance(whole, dict) else whole[:rows]
            state[name] = cut
    write_array_file(path, {"class": type(buffer), "state": state, "side": side}, _WHAT)


def from_plain(saved: Any) -> ReplayBuffer:
    """Make the buffer that :func:`save_plain` has stored, with all its empty rows."""
    kind, state = saved["class"], saved["state"]
    if not (isinstance(kind, type) and issubclass(kind, ReplayBuffer)):
        raise ValueError(f"The file names {kind!r}, which is no class of replay buffers")
    buffer = object.__new__(kind)
    size = state["buffer_size"]
    for name in _ROWS:
        if name in state:
            rows = state[name]
            filled = (
                {key: _filled(array, size) for key, array in rows.items()} if isinstance(rows, dict) else _filled(rows, size)
            )
            state[name] = filled
    vars(buffer).update(state)
    _check_plain(buffer)
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = None
    if saved["side"]:
        vars(buffer)["side_store"] = saved["side"]
    return buffer


def _check_plain(buffer: Any) -> None:
    """:raises ValueError: for values that fit neither each other nor the spaces"""
    size, n_envs = buffer.buffer_size, buffer.n_envs
    whole = all(type(number) is int for number in (size, n_envs, buffer.pos)) and isinstance(buffer.full, (bool, np.bool_))
    if not (whole and n_envs > 0 and 0 <= buffer.pos < size):
        raise ValueError(f"position {buffer.pos!r} of {size!r} rows of {n_envs!r} environments, full: {buffer.full!r}")
    for space in (buffer.observation_space, buffer.action_space):
        if not isinstance(space, spaces.Space) or not isinstance(repr(space), str) or not space == copy.deepcopy(space):
            raise ValueError("one of its spaces is none of Gymnasium's")
    if buffer.obs_shape != get_obs_shape(buffer.observation_space) or buffer.action_dim != get_action_dim(buffer.action_space):
        raise ValueError("its shapes do not fit its spaces")
    for name in _ROWS:
        rows = vars(buffer).get(name, {})
        for array in rows.values() if isinstance(rows, dict) else (rows,):
            if array.shape[:2] != (size, n_envs):
                raise ValueError(f"its {name!r} are of the shape {array.shape}, and not ({size}, {n_envs}, ...)")


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Add empty rows, as SB3 makes them, up to the size of the buffer."""
    if len(rows) >= size:
        return rows
    if rows.dtype.kind == "O":  # the infos of HerReplayBuffer
        whole = np.empty((size, *rows.shape[1:]), dtype=object)
        for index in np.ndindex(whole.shape):
            whole[index] = {}
    else:
        whole = np.zeros((size, *rows.shape[1:]), dtype=rows.dtype)
    whole[: len(rows)] = rows
    return whole
