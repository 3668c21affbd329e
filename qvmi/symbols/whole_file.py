"""Files that are read and written as a whole: a reader sees all of one, or the one before."""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from qvmi.errors import UsageError

__all__ = ["open_regular", "write_whole"]


def open_regular(path: Path) -> BinaryIO:
    """This opens a file for reading, unless it is one that may keep its reader waiting.

    Raises:
        OSError: it cannot be opened, or it is a pipe, a device or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def write_whole(path: Path, data: bytes) -> None:
    """This writes a file beside the one it replaces, then puts it in its place.

    A link is followed. What is no regular file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        UsageError: the path cannot be written; says why.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link leads to itself
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {why}; choose another path") from error


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
