"""A folder that only its owner may enter and that does not outlive the program that made it.

A program that is killed cannot remove its folder, so each one holds a lock on a file in it, and
removes those of the dead when it makes its own.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

__all__ = ["private_folder"]

_PREFIX: Final = "qvmi-bus-"
_LOCK: Final = "owner.lock"
_PRIVATE: Final = 0o700
_MODES: Final = (_PRIVATE, 0o2710)
"""The second one is of a folder through which its owner lets a group pass, to the broker's socket."""

_MAKING_S: Final = 3600.0
"""A folder without a lock has lost its maker before that made one, which takes a millisecond."""

_MAX_SWEPT: Final = 64
"""Folders of the dead looked at in one start, so that a littered folder for temporary files costs little."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """This makes a folder of mode 0700 below the one for temporary files, and removes it.

    Raises:
        OSError: it cannot be made.
    """
    _remove_folders_of_the_dead(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        lock = _lock(folder)
        try:
            yield folder
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int:
    """This makes the lock file appear locked, so that nobody takes the folder for a dead one's."""
    new = folder / f"{_LOCK}.new"
    lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove_folders_of_the_dead(parent: Path) -> None:
    for folder in islice(filter(_is_ours, parent.glob(f"{_PREFIX}*")), _MAX_SWEPT):
        if _owner_is_dead(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) in _MODES
    return private and status.st_uid == os.geteuid()


def _is_forgotten(folder: Path) -> bool:
    try:
        return time.time() - folder.lstat().st_mtime > _MAKING_S
    except OSError:
        return False


def _owner_is_dead(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _is_forgotten(folder)  # or it is being made, or being removed
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)
