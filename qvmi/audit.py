"""The audit log: what was done to guests and what was refused, in a file that cannot be changed unnoticed.

Each record holds the hash of the one before it, so that none can be altered, left out, added or moved without
all behind it being wrong. That the last ones were cut off shows only beside the hash of the last one, noted
elsewhere; so does a file that was written anew as a whole.

References: RFC 6962 (for what a chain of hashes does not prove), write(2) O_APPEND, flock(2).
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from qvmi.errors import AuditBroken, AuditFailed

__all__ = ["LOGGER", "AuditLog", "Verified", "verify"]

LOGGER: Final = "qvmi.audit"
"""The logger whose records an audit log keeps."""

MAX_RECORD: Final = 8 << 20
"""Bytes of a record."""
_MAX_TEXT: Final = 1 << 20
"""Letters of what a record tells, each of which may take six bytes; what is longer is cut, and says so."""

_USUAL_TAIL: Final = 1 << 16
"""Bytes at the end of a log that are read for its last record; only for a long one more."""

_FIRST: Final = "0" * 64
"""What stands for the hash of the record before the first."""
_HASH: Final = b',"hash":"'
_TAIL: Final = len(_HASH) + 64 + len(b'"}')
_MODE: Final = 0o600
"""Old and new bytes are the guest's own: they are nobody else's business."""


class _Record(msgspec.Struct, frozen=True):
    """This is one record: a line of JSON, whose hash is that of the line without it."""

    sequence: int
    time: float
    uid: int
    pid: int
    level: str
    text: str
    previous: str


class _Read(msgspec.Struct, frozen=True):
    """This is what a record is known by."""

    sequence: int
    previous: str
    hash: str


class Verified(NamedTuple):
    """This is what a log that was not tampered with holds.

    Args:
        records: how many.
        head: the hash of the last one; zeros where there is none. Noted elsewhere, it shows later
            that none was cut off.
    """

    records: int
    head: str


class AuditLog(logging.Handler):
    """This keeps the records of the logger ``qvmi.audit`` in a file, for as long as its block lasts.

    Several programs may share one file. A record is on the disk before what it tells of is done;
    where it cannot be written, the action is refused.

    Args:
        path: of the file, which is made with mode 0600 if there is none.

    Raises:
        AuditFailed: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(path, flags, _MODE)
        except OSError as error:
            raise AuditFailed(path, error.strerror or str(error)) from error

    def __enter__(self) -> Self:
        logger = logging.getLogger(LOGGER)
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(LOGGER).removeHandler(self)
        self.close()
        os.close(self._file)

    def emit(self, record: logging.LogRecord) -> None:
        """This writes one record.

        Raises:
            AuditFailed: it cannot be written, or the last one in the file is none.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._append(record)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise AuditFailed(self.path, error.strerror or str(error)) from error

    def _append(self, record: logging.LogRecord) -> None:
        size = os.fstat(self._file).st_size
        whole, last = self._last(size)
        if whole != size:
            # A machine that crashed has left a part of a record, which was never acknowledged.
            os.ftruncate(self._file, whole)
        line = _line(record, last)
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, whole)
            raise AuditFailed(self.path, "no space left for a record")
        os.fsync(self._file)

    def _last(self, size: int) -> tuple[int, _Read]:
        """This is the last whole record, and how long the file is up to its end."""
        length = _USUAL_TAIL
        while True:
            start = max(0, size - length)
            tail = os.pread(self._file, size - start, start)
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
            if begin or not start or length >= 2 * MAX_RECORD:
                break
            length *= 16  # a long record, or a part of one
        if not end:
            if size > MAX_RECORD:
                raise AuditFailed(self.path, "it is no audit log: move it away")
            return 0, _Read(-1, "", _FIRST)
        last = _parsed(tail[begin : end - 1])
        if last is None:
            raise AuditFailed(self.path, "its last line is no record: run qvmi audit verify on it")
        return start + end, last


def verify(path: Path, *, head: str | None = None) -> Verified:
    """This checks that a log is as it was written.

    Args:
        path: of the file.
        head: the hash of a record that is known to have been in it; None where none is known.

    Raises:
        AuditBroken: it is not; says from which line on.
        AuditFailed: it cannot be read.
    """
    records = 0
    previous = _FIRST
    seen = head is None or head == _FIRST
    try:
        for number, line in enumerate(_lines(path), start=1):
            read = _parsed(line)
            if read is None:
                raise AuditBroken(path, number, "it is no record, or its hash is another")
            if read.previous != previous:
                raise AuditBroken(path, number, "it does not follow the record before it")
            if read.sequence != records:
                raise AuditBroken(path, number, f"it has the number {read.sequence}")
            records, previous = number, read.hash
            seen = seen or previous == head
    except OSError as error:
        raise AuditFailed(path, error.strerror or str(error)) from error
    if not seen:
        raise AuditBroken(
            path, records + 1, f"the record with the hash {head} is not there any more"
        )
    return Verified(records, previous)


def _lines(path: Path) -> Iterator[bytes]:
    """These are the lines of a file, none longer than a record may be."""
    with path.open("rb") as file:
        while line := file.readline(MAX_RECORD + 1):
            yield line[:-1] if line.endswith(b"\n") else line + b"?"


def _line(record: logging.LogRecord, last: _Read) -> bytes:
    text = record.getMessage()
    body = msgspec.json.encode(
        _Record(
            sequence=last.sequence + 1,
            time=time.time(),
            uid=os.getuid(),
            pid=os.getpid(),
            level=record.levelname,
            text=text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text)} letters)",
            previous=last.hash,
        )
    )
    return body[:-1] + _HASH + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _parsed(line: bytes) -> _Read | None:
    """This reads a record; None where it is none, or its hash is not its own."""
    body = line[:-_TAIL] + b"}"
    try:
        read = msgspec.json.decode(line, type=_Read)
        msgspec.json.decode(body, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    own = line[-_TAIL:].startswith(_HASH) and hashlib.sha256(body).hexdigest() == read.hash
    return read if own else None
