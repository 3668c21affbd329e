"""The files that QEMU reads and writes a disk in, opened for reading alone.

They are opened through QEMU's own descriptors, so that they are the very files: one that was deleted, or
replaced by another of its name, or that lies in another mount namespace, has no path of its own. Reading
takes no lock, so that QEMU's does not matter, and changes nothing, not even the time of the last access.

References: proc(5) (/proc/pid/fd, /proc/pid/cwd, /proc/pid/root), open(2) (O_NOATIME); QEMU
``block/file-posix.c`` (its locks are on bytes of the file, and for who asks for them).
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, Self

from qvmi.errors import DiskRefused
from qvmi.qmp.block import BlockImage

__all__ = ["DiskFiles", "OpenedImage"]

_MAX_DESCRIPTORS: Final = 1 << 16
"""Of QEMU's that are looked at; with many disks and connections it has some thousands."""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_DELETED: Final = " (deleted)"


class OpenedImage:
    """This is an image that is open for reading.

    Args:
        image: which one.
        descriptor: to read it by, which this owns.
        path: of the file, as the kernel names it.
        held_by_qemu: whether it is certain that this is the file that QEMU has open.
    """

    def __init__(
        self, image: BlockImage, descriptor: int, path: str, *, held_by_qemu: bool
    ) -> None:
        self.image = image
        self.descriptor = descriptor
        self.path = path
        self.held_by_qemu = held_by_qemu


class DiskFiles:
    """These are the open images of one disk. Only :meth:`open` makes them.

    Attributes:
        images: the one that is written to first.
    """

    def __init__(self, images: Sequence[OpenedImage]) -> None:
        self.images = tuple(images)

    @classmethod
    def open(cls, images: Sequence[BlockImage], qemu: int | None) -> Self:
        """This opens the images of a disk.

        Args:
            images: that QEMU has named.
            qemu: its process; None where it is not known, as over TCP.

        Raises:
            DiskRefused: one of them cannot be opened, or is no regular file.
        """
        opened: list[OpenedImage] = []
        try:
            held = None if qemu is None else _held_files(qemu)
            for image in images:
                if qemu is not None and held is not None:
                    opened.append(_of_qemu(image, qemu, held))
                else:
                    opened.append(_by_path(image))
        except BaseException:
            cls(opened).close()
            raise
        return cls(opened)

    def close(self) -> None:
        """This closes them."""
        for image in self.images:
            os.close(image.descriptor)


def _held_files(qemu: int) -> dict[Path, os.stat_result] | None:
    """These are the regular files that QEMU has open; None where we may not know."""
    held: dict[Path, os.stat_result] = {}
    try:
        for link in islice(Path(f"/proc/{qemu}/fd").iterdir(), _MAX_DESCRIPTORS):
            with suppress(OSError):  # it was closed meanwhile
                status = link.stat()
                if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    held[link] = status
    except OSError:
        return None
    return held


def _of_qemu(image: BlockImage, qemu: int, held: dict[Path, os.stat_result]) -> OpenedImage:
    """This opens the file that QEMU has open under the name it tells."""
    path = _absolute(image.filename, qemu)
    link = _same_file(path, qemu, held) or _same_name(path, held)
    if link is None:
        raise DiskRefused(image.filename, "QEMU's process has no such file open")
    return OpenedImage(image, _opened(link, image), _named(link), held_by_qemu=True)


def _absolute(filename: str, qemu: int) -> str:
    if filename.startswith("/"):
        return filename
    try:
        return os.path.normpath(Path(f"/proc/{qemu}/cwd").readlink() / filename)
    except OSError as error:
        raise DiskRefused(filename, f"QEMU's working directory is not known: {error}") from error


def _same_file(path: str, qemu: int, held: dict[Path, os.stat_result]) -> Path | None:
    """This is QEMU's descriptor for the file that has this path where QEMU lives."""
    try:
        wanted = os.stat(f"/proc/{qemu}/root{path}")  # noqa: PTH116 - pathlib drops a second slash
    except (OSError, ValueError):  # the latter for what no file can be called
        return None
    return next((link for link, its in held.items() if os.path.samestat(its, wanted)), None)


def _same_name(path: str, held: dict[Path, os.stat_result]) -> Path | None:
    """This is QEMU's descriptor for a file that had this path, which now is another file's or nobody's."""
    return next((link for link in held if _named(link) in {path, path + _DELETED}), None)


def _named(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _by_path(image: BlockImage) -> OpenedImage:
    """This opens a file by its name alone, where QEMU's descriptors are out of sight."""
    if not image.filename.startswith("/"):
        raise DiskRefused(image.filename, "where QEMU's working directory is, is not known here")
    return OpenedImage(
        image, _opened(Path(image.filename), image), image.filename, held_by_qemu=False
    )


def _opened(path: Path, image: BlockImage) -> int:
    try:
        descriptor = _open(path)
    except OSError as error:
        raise DiskRefused(image.filename, error.strerror or str(error)) from error
    except ValueError as error:
        raise DiskRefused(image.filename, f"no file is called that: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DiskRefused(image.filename, "it is no regular file, as a device of the host")
    return descriptor


def _open(path: Path) -> int:
    try:
        return os.open(path, _FLAGS | os.O_NOATIME)
    except PermissionError:  # only the owner may ask for that
        return os.open(path, _FLAGS)
