"""What codepacks say as lines of JSON in a file, which may be rotated, and whose disk may be full.

References: flock(2), write(2) O_APPEND, logrotate(8) ``create`` and ``copytruncate``.
"""

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from qvmi.errors import UsageError

__all__ = ["AlertFile"]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A pipe that nobody reads is refused at once."""
_MODE: Final = 0o600
"""What was found are the guest's own bytes: nobody else's business."""


class AlertFile:
    """This appends messages to a file for as long as its block lasts, each whole or not at all.

    Args:
        path: of the file. Where another has taken its place, or none, as after a rotation, a new one is
            begun there.

    Attributes:
        lost: messages that could not be written since the last one that could.

    Raises:
        UsageError: it cannot be opened, or another program writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._path = path
        self._file = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, line: bytes) -> None:
        """This appends one message; first, how many were lost, if any were.

        Raises:
            UsageError: it cannot be written; it is counted, and the next one may be.
        """
        try:
            self._follow()
            if self.lost:
                told = {"kind": "lost", "time": time.time(), "lost": self.lost}
                self._append(msgspec.json.encode(told))
                self.lost = 0
            self._append(line)
        except (OSError, UsageError) as error:
            self.lost += 1
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(
                f"{self._path}: {self.lost} messages could not be written: {why}"
            ) from error

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        data = line + b"\n"
        try:
            written = os.write(self._file, data)
        except OSError:
            self._cut(size)
            raise
        if written != len(data):
            self._cut(size)
            raise UsageError("no space left for a whole line")

    def _cut(self, size: int) -> None:
        """This takes back the part of a line that had room; nobody else writes here."""
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, size)

    def _follow(self) -> None:
        """This begins a new file where the one that was open is not at its place any more."""
        ours = os.fstat(self._file)
        try:
            there = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        new = self._opened()
        os.close(self._file)
        self._file = new

    def _opened(self) -> int:
        try:
            file = os.open(self._path, _FLAGS, _MODE)
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be opened: {error.strerror}") from error
        try:
            self._require_regular(file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._repair(file)
        except BlockingIOError as error:
            os.close(file)
            raise UsageError(f"{self._path}: another program writes to it") from error
        except OSError as error:
            os.close(file)
            raise UsageError(f"{self._path}: cannot be used: {error.strerror}") from error
        except UsageError:
            os.close(file)
            raise
        return file

    def _require_regular(self, file: int) -> None:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UsageError(f"{self._path}: is no file")

    def _repair(self, file: int) -> None:
        """This ends a line that somebody who was killed has begun, so that the next is whole."""
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")
