"""The folder of a run's checkpoints: saving the next one, finding the newest that is intact, and cleaning up."""

import os
import re
import shutil
import uuid
import warnings
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.agent.manifest import DamagedError
from sb3_mbrl.agent.whole_files import flush
from sb3_mbrl.checkpoints.checkpoint_set import CheckpointSet, write_set
from sb3_mbrl.checkpoints.interruptions import uninterrupted
from sb3_mbrl.checks import whole

LATEST = "latest"
"""The name of the link to the newest checkpoint"""

_NAME = re.compile(r"(\d{6,})-step-\d+")
_UNFINISHED, _DISCARDED, _LOCK = ".unfinished-", ".discarded-", ".lock"


class FolderInUseError(RuntimeError):
    """A folder that another run saves to; the message names it."""


class Found(NamedTuple):
    """
    The outcome of looking for a checkpoint.

    :param chosen: the newest intact one, preferably with its replay buffer (unless that is from before the first step);
        ``None``: there is none
    :param damaged: a sentence for each newer one that is damaged, which names the file
    :param incomplete: a newer intact one that lacks its replay buffer
    """

    chosen: CheckpointSet | None
    damaged: list[str]
    incomplete: CheckpointSet | None


class CheckpointFolder:
    """
    A folder with the checkpoints of one run, oldest first: ``000001-step-400``, ``000002-step-800``, ...

    A checkpoint is written into a temporary folder, flushed to the disk, and renamed: a process that is killed at any moment
    leaves the checkpoints of before. A run that saves holds a lock, which the system takes back when the process ends.

    :param path: the folder; it is made when the lock is acquired
    :param keep: the number of checkpoints to keep, at least 1; with 2 there is one left where the newest is damaged
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path, self.keep = Path(path), whole("keep", keep, 1)
        # One lock per process: after an exception in a notebook, the next run of the same process goes on.
        self._lock = FileLock(os.path.abspath(self.path / _LOCK), timeout=0, is_singleton=True)

    # ---- one run per folder

    def acquire(self) -> list[str]:
        """
        Reserve the folder for this process, and remove what killed processes have left behind.

        :return: the names of the folders that were removed
        :raises FolderInUseError: when another process has it
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise FolderInUseError(f"{self.path} is in use by another run: wait for its end, or use another folder") from error
        left = [entry for entry in self.path.iterdir() if entry.name.startswith((_UNFINISHED, _DISCARDED))]
        for entry in left:
            _remove(entry)
        return [entry.name for entry in left]

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock.release(force=True)

    # ---- reading

    def sets(self) -> list[CheckpointSet]:
        """List the checkpoints, oldest first; damaged ones too."""
        if not self.path.is_dir():
            return []
        numbered = {int(match[1]): entry for entry in self.path.iterdir() if (match := _NAME.fullmatch(entry.name))}
        return [CheckpointSet(numbered[number]) for number in sorted(numbered)]

    def newest(self) -> Found:
        """
        Find the newest checkpoint that is intact. One with its replay buffer is preferred: from the others a run cannot be
        continued as if nothing had happened.
        """
        damaged: list[str] = []
        incomplete: CheckpointSet | None = None
        for candidate in reversed(self.sets()):
            try:
                candidate.verify()
                if candidate.has_buffer:
                    if incomplete is not None and candidate.step == 0:  # of no use
                        return Found(incomplete, damaged, None)
                    return Found(candidate, damaged, incomplete)
            except DamagedError as error:
                damaged.append(str(error))
            except OSError as error:
                damaged.append(f"{candidate.path} cannot be read: {error}")
            else:
                incomplete = incomplete or candidate
        return Found(incomplete, damaged, None)

    # ---- writing

    def save(self, agent: OffPolicyAlgorithm) -> CheckpointSet:
        """
        Save an agent as the newest checkpoint. Signals that end the process wait until that is done.

        Where the disk is full, the agent is saved once more without its imagined rows, which can be imagined again, then
        without its replay buffer.

        :return: the checkpoint; its ``lacks`` says what could not be saved
        :raises OSError: when nothing could be saved; the checkpoints of before are untouched
        """
        self.acquire()
        with uninterrupted():
            saved = self._write_what_fits(agent)
            self._point_to(saved)
            try:
                self._discard_old()
            except OSError as error:  # this checkpoint is saved all the same
                warnings.warn(f"Old checkpoints in {self.path} could not be removed: {error}", stacklevel=2)
        return saved

    def _write_what_fits(self, agent: OffPolicyAlgorithm) -> CheckpointSet:
        lacks: dict[str, str] = {}
        imagines = getattr(agent, "imagined", None) is not None
        for what in ("imagined_rows", "replay_buffer") if imagines else ("replay_buffer",):
            try:
                return self._write(agent, lacks)
            except OSError as error:
                lacks = {**lacks, what: error.strerror or str(error)}
        return self._write(agent, lacks)

    def _write(self, agent: OffPolicyAlgorithm, lacks: dict[str, str]) -> CheckpointSet:
        unfinished = self.path / f"{_UNFINISHED}{uuid.uuid4().hex[:8]}"
        unfinished.mkdir()
        try:
            write_set(agent, unfinished, lacks)
            sets = self.sets()
            number = 1 + (int(sets[-1].path.name.partition("-")[0]) if sets else 0)
            final = self.path / f"{number:06d}-step-{agent.num_timesteps}"
            os.rename(unfinished, final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        flush(self.path)
        return CheckpointSet(final)

    def _point_to(self, saved: CheckpointSet) -> None:
        """Let ``latest`` be a link to a checkpoint; on systems without links there is none."""
        temporary = self.path / f"{_DISCARDED}{uuid.uuid4().hex[:8]}"
        try:
            temporary.symlink_to(saved.path.name, target_is_directory=True)
            os.replace(temporary, self.path / LATEST)
        except (OSError, NotImplementedError):  # Windows without the privilege, or a file system without links
            temporary.unlink(missing_ok=True)

    def _discard_old(self) -> None:
        """Remove all but the newest checkpoints with a buffer, and one without if it is newer than they."""
        kept = 0
        for number, candidate in enumerate(reversed(self.sets())):
            if kept >= self.keep or (number > 0 and not _has_buffer(candidate)):
                # Renamed first: removing a folder takes time, and half a checkpoint must not look like one.
                discarded = self.path / f"{_DISCARDED}{uuid.uuid4().hex[:8]}"
                os.rename(candidate.path, discarded)
                _remove(discarded)
            elif _has_buffer(candidate):
                kept += 1


def _has_buffer(candidate: CheckpointSet) -> bool:
    try:
        return candidate.has_buffer
    except (DamagedError, OSError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
