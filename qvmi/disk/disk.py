"""A virtual disk as it is now: its volumes, folders and files.

The guest writes meanwhile. What two looks in a row show alike is believed; what goes on changing is told so.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, TypeVar

import msgspec

from qvmi.disk.ext4 import NAME, ROOT, Ext4, Inode, begins_ext4
from qvmi.disk.image import Effort, FileImage, ImageBytes, ImagePart
from qvmi.disk.partitions import partitions
from qvmi.disk.qcow2 import Qcow2Image
from qvmi.disk.rows import DiskEntry, Volume
from qvmi.errors import CorruptDisk, NoSuchFile, UsageError

__all__ = ["MAX_BLOCKS", "Found", "ImageFile", "VirtualDisk"]

Look = TypeVar("Look")
Row_co = TypeVar("Row_co", covariant=True)

MAX_ENTRIES: Final = 100_000
"""Names of one folder that are told; each takes some microseconds and some hundred bytes."""
MAX_BLOCKS: Final = 1 << 16
"""Blocks of one question; of 4 KiB they are 256 MiB."""
_LOOKS: Final = 4
"""Looks at what changes before it is told as it is, with a gap; two that are alike end it."""
_MAX_GAPS: Final = 1000
_MAX_LINKS: Final = 40
"""Symlinks that one path may lead through, as Linux has it (``MAXSYMLINKS``)."""
_MAX_PATH: Final = 4096
"""Bytes of a path, as Linux has it (``PATH_MAX``)."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """This is one image of a chain.

    Args:
        format: ``raw`` or ``qcow2``, as QEMU says: an image is never asked for its own.
        descriptor: that its file is read by.
    """

    format: str
    descriptor: int


@dataclass(frozen=True, slots=True)
class Found(Generic[Row_co]):
    """This is what was found.

    Args:
        rows: in the order of the disk.
        gaps: what could not be looked at.
        retries: looks that were in vain, as the guest was changing what they saw.
    """

    rows: tuple[Row_co, ...]
    gaps: tuple[str, ...] = ()
    retries: int = 0


class VirtualDisk:
    """This is a disk in image files. It keeps nothing that it reads.

    Paths are seen from the root of the volume, and symlinks lead to where they lead within it.

    Args:
        chain: its images, the one that is written to first, each before the one that backs it.
        volume: number of the volume whose files are read; None for the only one with a file system.
        effort: counts what is read; its own unless somebody wants to be able to stop it.
    """

    def __init__(
        self,
        chain: Sequence[ImageFile],
        *,
        volume: int | None = None,
        effort: Effort | None = None,
    ) -> None:
        self._chain = tuple(chain)
        self._volume = volume
        self._effort = effort or Effort()

    def volumes(self) -> Found[Volume]:
        """These are the partitions, or the whole disk where there are none.

        Raises:
            CorruptDisk: the disk cannot be read.
        """
        self._effort.renew()
        return _volumes(self._opened(), self._effort)

    def list(self, path: bytes) -> Found[DiskEntry]:
        """This lists what a folder has; of anything else it is that alone.

        Raises:
            NoSuchFile: there is nothing of that name.
            UsageError: it is not clear which volume is meant.
            CorruptDisk: what leads there contradicts itself.
        """
        return self._settled(lambda: self._list(path))

    def stat(self, path: bytes, *, follow: bool = False) -> Found[DiskEntry]:
        """This tells of one thing.

        Args:
            path: of it.
            follow: whether a symlink at its end is followed.

        Returns:
            One row.

        Raises:
            NoSuchFile, UsageError, CorruptDisk: as :meth:`list`.
        """
        return self._settled(lambda: self._stat(path, follow=follow))

    def read(self, path: bytes) -> "FileContent":
        """This opens a file.

        Raises:
            NoSuchFile, CorruptDisk: as :meth:`list`.
            UsageError: the same, or it is no file.
        """
        self._effort.renew()
        fs = self._file_system()
        inode = _Walk(fs).find(path)
        if inode.facts.kind != "file":
            raise UsageError(f"{_shown(path)} is a {inode.facts.kind}, no file")
        return FileContent(fs, inode, self._effort, lambda: self._reopened(path))

    def blocks(
        self, inode: int, blocks: Sequence[int], block_size: int
    ) -> tuple[DiskEntry, tuple[str, ...]]:
        """This tells what blocks of a file hold, for whoever compares them with something.

        Args:
            inode: number of the file.
            blocks: which ones, by their number in the file, in rising order.
            block_size: bytes of each; the last one ends with the file.

        Returns:
            The inode, without a path, and the SHA-256 of each block in hexadecimal; empty for one that is
            not on the disk as a whole, or all zeros there: what QEMU has not told the image yet is, too.
            All are empty where it is no file.

        Raises:
            UsageError: there are more blocks than `MAX_BLOCKS`.
            CorruptDisk: it contradicts itself, or is encrypted.
        """
        if len(blocks) > MAX_BLOCKS:
            raise UsageError(f"{len(blocks)} blocks are too many for one look")
        self._effort.renew()
        fs = self._file_system()
        found = fs.inode(inode)
        digests = dict.fromkeys(blocks, "")
        if found.facts.kind != "file":
            return found.facts, tuple(digests.values())
        if found.is_encrypted:
            raise CorruptDisk("it is encrypted")
        for at, data in _whole_blocks(fs, found, block_size, set(blocks)):
            if data.strip(b"\0"):
                digests[at] = hashlib.sha256(data).hexdigest()
        return found.facts, tuple(digests[block] for block in blocks)

    def _opened(self) -> ImageBytes:
        """This is what the guest sees of the images."""
        disk: ImageBytes | None = None
        for image in reversed(self._chain):
            file = FileImage(image.descriptor, self._effort)
            disk = file if image.format == "raw" else Qcow2Image(file, disk, self._effort)
        if disk is None:
            raise UsageError("a disk without images")
        return disk

    def _file_system(self) -> Ext4:
        """This is the file system of the volume that is meant, read anew.

        Raises:
            NoSuchFile: there is no such volume, or none with a file system that is read.
            UsageError: it is not clear which volume is meant.
        """
        disk = self._opened()
        found = _volumes(disk, self._effort)
        if self._volume is None:
            rows = [row for row in found.rows if row.filesystem]
        else:
            rows = [row for row in found.rows if row.number == self._volume]
        if not rows and found.gaps:
            raise CorruptDisk(found.gaps[0])
        if not rows:
            which = f"there is no volume {self._volume}"
            raise NoSuchFile(which if self._volume is not None else f"no volume has {NAME}")
        if len(rows) > 1:
            choices = ", ".join(str(row.number) for row in rows)
            raise UsageError(f"several volumes have a file system; name one of {choices}")
        part = ImagePart(disk, rows[0].start, rows[0].size)
        if not begins_ext4(part):
            raise UsageError(f"volume {rows[0].number} has no file system that is read: {NAME}")
        return Ext4(part, self._effort)

    def _settled(self, look: Callable[[], Found[Row_co]]) -> Found[Row_co]:
        """This looks until two looks in a row show the same."""
        self._effort.renew()
        before = look()
        for retries in range(_LOOKS - 1):
            self._effort.renew()
            after = look()
            if after == before:
                return Found(after.rows, after.gaps, retries)
            before = after
        gap = "it is another one each time it is read: the guest is changing it"
        return Found(before.rows, (*before.gaps, gap), _LOOKS - 1)

    def _stat(self, path: bytes, *, follow: bool) -> Found[DiskEntry]:
        walk = _Walk(self._file_system())
        return Found((walk.described(walk.find(path, follow=follow), _absolute(path)),))

    def _list(self, path: bytes) -> Found[DiskEntry]:
        walk = _Walk(self._file_system())
        folder = walk.find(path)
        if folder.facts.kind != "folder":
            return Found((walk.described(folder, _absolute(path)),))
        return walk.entries(folder, _absolute(path))

    def _reopened(self, path: bytes) -> DiskEntry:
        return _Walk(self._file_system()).find(path).facts


class FileContent:
    """This is what is in a file, while it is read; :meth:`VirtualDisk.read` makes it.

    Attributes:
        facts: of the file, without a path.
        effort: counts what is read for it.
    """

    def __init__(
        self, fs: Ext4, inode: Inode, effort: Effort, again: Callable[[], DiskEntry]
    ) -> None:
        self._fs = fs
        self._inode = inode
        self.effort = effort
        self._again = again
        self.facts = inode.facts

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """These are its parts, by rising offset and of at most 2 MiB; what lies between is zeros.

        Raises:
            CorruptDisk: it contradicts itself, or, behind the last part, it was changed meanwhile.
        """
        for part in self._fs.content(self._inode):
            self.effort.renew()
            yield part
        self.effort.renew()
        if self._again() != self.facts:
            raise CorruptDisk("the guest has changed the file while it was read")


class _Walk:
    """This finds its way in a file system, for one look."""

    def __init__(self, fs: Ext4) -> None:
        self._fs = fs

    def find(self, path: bytes, *, follow: bool = True) -> Inode:
        """This is what a path leads to.

        Args:
            path: with or without a slash in front.
            follow: whether a symlink at its end is followed; those before it are.

        Raises:
            NoSuchFile: there is no such path.
            UsageError: it is too long.
            CorruptDisk: a folder or inode on the way contradicts itself.
        """
        if len(path) > _MAX_PATH:
            raise UsageError(f"a path of {len(path)} bytes")
        above: list[Inode] = []
        inode = self._fs.inode(ROOT)
        rest, links = _parts(path), 0
        while rest:
            name = rest.pop(0)
            if name == b"..":
                inode = above.pop() if above else inode
                continue
            child = self._child(inode, name, path)
            if child.facts.kind == "symlink" and (rest or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise CorruptDisk(f"{_shown(path)}: too many symlinks")
                target = self._fs.target(child)
                if not target:
                    raise CorruptDisk(
                        f"{_shown(path)}: a symlink on its way is encrypted, or empty"
                    )
                if target.startswith(b"/"):
                    above, inode = [], self._fs.inode(ROOT)
                rest = [*_parts(target), *rest]
                continue
            above.append(inode)
            inode = child
        return inode

    def entries(self, folder: Inode, path: bytes) -> Found[DiskEntry]:
        """These are what a folder has; what is wrong with one hides no other."""
        entries: list[DiskEntry] = []
        gaps: list[str] = []
        try:
            for name, number in islice(self._fs.names(folder), MAX_ENTRIES + 1):
                if len(entries) == MAX_ENTRIES:
                    gaps.append(f"it has more than {MAX_ENTRIES} entries")
                    break
                full = os.path.join(path, name)  # noqa: PTH118 - bytes
                try:
                    entries.append(self.described(self._fs.inode(number), full))
                except CorruptDisk as error:
                    gaps.append(f"{_shown(full)}: {error}")
        except CorruptDisk as error:
            gaps.append(f"what follows {len(entries)} entries: {error}")
        return Found(tuple(entries), tuple(gaps[:_MAX_GAPS]))

    def described(self, inode: Inode, path: bytes) -> DiskEntry:
        """This is what is told of an inode."""
        target = _shown(self._fs.target(inode)) if inode.facts.kind == "symlink" else ""
        return msgspec.structs.replace(inode.facts, path=_shown(path), target=target)

    def _child(self, folder: Inode, name: bytes, path: bytes) -> Inode:
        if folder.facts.kind == "folder":
            for found, number in self._fs.names(folder):
                if found == name:
                    return self._fs.inode(number)
        raise NoSuchFile(f"{_shown(path)}: no such file")


def _volumes(disk: ImageBytes, effort: Effort) -> Found[Volume]:
    """These are the volumes of a disk.

    A file system that begins with the disk makes it one volume. Where there are partitions, too, as a
    guest can make it look, nobody can tell which of them is meant: then all are told.
    """
    gaps: list[str] = []
    whole = Volume(0, 0, disk.size, "")
    of_table: list[str] = []
    parts = partitions(disk, of_table)
    rows: list[Volume] = []
    if begins_ext4(disk):
        gaps += ["it begins as a file system, and has partitions, too"] if parts else []
        parts = [whole, *parts]
    else:
        gaps += of_table
    for row in parts or [whole]:
        part = ImagePart(disk, row.start, row.size)
        try:
            rows.append(Ext4(part, effort).told(row) if begins_ext4(part) else row)
        except CorruptDisk as error:
            rows.append(row)
            gaps.append(f"volume {row.number}: {error}")
    return Found(tuple(rows), tuple(gaps[:_MAX_GAPS]))


def _whole_blocks(
    fs: Ext4, inode: Inode, block_size: int, wanted: set[int]
) -> Iterator[tuple[int, bytes]]:
    """These are the blocks of a file that are on the disk as a whole, of those that are wanted."""
    held, begins = b"", 0
    size = inode.facts.size
    places = [range(at * block_size, (at + 1) * block_size) for at in sorted(wanted)]
    for at, data in fs.content(inode, _joined(places)):
        if at == begins + len(held):
            held += data
        else:
            held, begins = data, at
        used = 0
        while used < len(held):
            block, within = divmod(begins + used, block_size)
            length = min((block + 1) * block_size, size) - begins - used
            if used + length > len(held):
                break
            if not within and block in wanted:
                yield block, held[used : used + length]
            used += length
        held, begins = held[used:], begins + used


def _joined(parts: Sequence[range]) -> list[range]:
    """These are the same stretches, those that follow one another as one."""
    found: list[range] = []
    for part in parts:
        if found and found[-1].stop == part.start:
            found[-1] = range(found[-1].start, part.stop)
        else:
            found.append(part)
    return found


def _absolute(path: bytes) -> bytes:
    return b"/" + path.strip(b"/")


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in {b"", b"."}]


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
