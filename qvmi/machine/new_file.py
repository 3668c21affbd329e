"""A file that takes its place only when it is whole, and until then is nowhere to be seen."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from qvmi.errors import UsageError

__all__ = ["NewFile"]

_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NewFile:
    """This is written beside its place, which it takes when all is written.

    It replaces nothing but an older file, and can be read by its owner alone: it holds secrets of the
    guest.

    Args:
        path: of the place.

    Attributes:
        descriptor: to write to.

    Raises:
        UsageError: there is no such place, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.writing():
            _require_replaceable(path)
            self.descriptor, self._beside = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name}."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """This translates what the host says of writing.

        Raises:
            UsageError: the host refuses.
        """
        try:
            yield
        except OSError as error:
            why = f"{self.path} cannot be written: {error.strerror}"
            raise UsageError(why) from error

    def write(self, offset: int, data: bytes) -> None:
        """This writes all bytes at an offset.

        Raises:
            UsageError: the disk is full, or cannot be written.
        """
        with self.writing():
            left = memoryview(data)
            while left:
                written = os.pwrite(self.descriptor, left, offset)
                left, offset = left[written:], offset + written

    def set_size(self, size: int) -> None:
        """This makes the file so large; what was not written is a hole.

        Raises:
            UsageError: the host cannot have a file so large.
        """
        with self.writing():
            os.truncate(self.descriptor, size)

    def put_in_place(self) -> int:
        """This makes the file what it was written for, and gives its size.

        Raises:
            UsageError: the place was taken by something else.
        """
        with self.writing():
            Path(self._beside).replace(self.path)
            return self.path.stat().st_size

    def close(self) -> None:
        """This removes what is not whole."""
        with suppress(OSError):
            os.close(self.descriptor)
        Path(self._beside).unlink(missing_ok=True)


def _require_replaceable(path: Path) -> None:
    """This makes sure that the file takes the place of nothing but an older one.

    A link is not followed: who may write to its folder could have put it there.

    Raises:
        UsageError: something else is there.
        OSError: it cannot be looked at.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise UsageError(f"{path} is a symbolic link to {path.readlink()}; name the file itself")
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise UsageError(f"{path} is {what}; this has holes and needs a regular file")
