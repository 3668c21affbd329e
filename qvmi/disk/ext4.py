"""The file systems ext2, ext3 and ext4: their inodes, folders and the content of files.

References: Linux Documentation/filesystems/ext4/ (``super.rst``, ``group_descr.rst``, ``inodes.rst``,
``directory.rst``), fs/ext4/ext4.h.
"""

import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from qvmi.disk.ext4_blocks import Run, extent_runs, listed_runs
from qvmi.disk.image import MAX_READ, CachedImage, Effort, ImageBytes
from qvmi.disk.rows import DiskEntry, Volume
from qvmi.errors import CorruptDisk, UsageError

__all__ = ["NAME", "ROOT", "Ext4", "Inode", "begins_ext4"]

NAME: Final = "ext2, ext3 or ext4"
"""What is read."""
ROOT: Final = 2
"""Number of the root folder's inode."""

_SUPER_AT: Final = 1024
_MAGIC: Final = 0xEF53
_HAS_JOURNAL: Final = 0x4
_RECOVER: Final = 0x4
_EXTENTS_FEATURE: Final = 0x40
_64BIT: Final = 0x80
_LARGE_FOLDERS: Final = 0x4000
_READ_FEATURES: Final = 0x3E7C6
"""Incompatible features under which what is read here is where it is: file types, recovery, extents, 64
bit, MMP, flexible groups, attributes in inodes, checksum seed, large folders, inline data, encryption,
casefold."""
_MIN_GROUP: Final = 32
_MIN_GROUP_64: Final = 64
_OLD_INODE: Final = 128
_MAX_BLOCK: Final = 65536
_MAX_SIZE: Final = 1 << 44
"""Bytes of a file, as ext4 has it with blocks of 4 KiB."""
_MAX_FOLDER: Final = 64 << 20
"""Bytes of a folder; they have room for more names than are told."""
_NAMES_OF_A_READ: Final = 12
"""Names that cost about as much as a read does."""
_MAX_TARGET: Final = 4096
_DIRENT: Final = struct.Struct("<IHBB")
"""``struct ext4_dir_entry_2`` up to its name."""

_EXTENTS: Final = 0x80000
_INLINE: Final = 0x10000000
_ENCRYPTED: Final = 0x800
_IN_INODE: Final = 60

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Inode:
    """This is an inode.

    Args:
        facts: of it, without a path.
        flags: of ext4.
        blocks: its 60 bytes about where its content is, or the content itself.
    """

    facts: DiskEntry
    flags: int
    blocks: bytes

    @property
    def is_encrypted(self) -> bool:
        """This tells whether names and content of it can be read with a key alone."""
        return bool(self.flags & _ENCRYPTED)

    @property
    def holds_content(self) -> bool:
        """This tells whether the content is in the inode itself."""
        short = self.facts.kind == "symlink" and self.facts.size < _IN_INODE
        return bool(self.flags & _INLINE) or (short and not self.flags & _EXTENTS)


class Ext4:
    """This is a file system of a volume. It keeps what it has read: a new look takes a new one.

    Args:
        volume: its bytes.
        effort: what may be read.

    Raises:
        CorruptDisk: it is none, or has features that are not read.
    """

    def __init__(self, volume: ImageBytes, effort: Effort) -> None:
        self._effort = effort
        self._volume = CachedImage(volume, effort)
        self._super = super_block = volume.read(_SUPER_AT, 1024)
        if _number(super_block, 0x38, 2) != _MAGIC:
            raise CorruptDisk("there is no file system")
        self.block_size = 1024 << min(_number(super_block, 0x18, 4), 30)
        self._inodes = _number(super_block, 0x0, 4)
        self._per_group = _number(super_block, 0x28, 4)
        new = _number(super_block, 0x4C, 4) > 0
        self._inode_size = _number(super_block, 0x58, 2) if new else _OLD_INODE
        self._incompatible = _number(super_block, 0x60, 4) if new else 0
        wide = bool(self._incompatible & _64BIT)
        self._group_size = _number(super_block, 0xFE, 2) if wide else _MIN_GROUP
        self._groups_at = (_number(super_block, 0x14, 4) + 1) * self.block_size
        self._wide = wide and self._group_size >= _MIN_GROUP_64
        self._check()

    def _check(self) -> None:
        unread = self._incompatible & ~_READ_FEATURES
        if unread:
            raise CorruptDisk(f"the file system has the features {unread:#x}, which are not read")
        sizes = (self.block_size, self._inode_size, self._group_size)
        if self.block_size > _MAX_BLOCK or not _OLD_INODE <= self._inode_size <= self.block_size:
            raise CorruptDisk(f"blocks, inodes and groups of {sizes} bytes")
        if not _MIN_GROUP <= self._group_size <= self.block_size or not self._per_group:
            raise CorruptDisk(f"blocks, inodes and groups of {sizes} bytes")

    def told(self, row: Volume) -> Volume:
        """This adds to a volume what the file system says of itself."""
        has_journal = _number(self._super, 0x5C, 4) & _HAS_JOURNAL
        old = "ext3" if has_journal else "ext2"
        return msgspec.structs.replace(
            row,
            filesystem="ext4" if self._incompatible & _EXTENTS_FEATURE else old,
            uuid=str(UUID(bytes=self._super[0x68:0x78])),
            label=self._super[0x78:0x88].partition(b"\0")[0].decode(errors="backslashreplace"),
            journal_pending=bool(self._incompatible & _RECOVER),
        )

    def inode(self, number: int) -> Inode:
        """This is an inode by its number.

        Raises:
            CorruptDisk: there is none, or it contradicts itself.
        """
        if not 0 < number <= self._inodes:
            raise CorruptDisk(f"there is no inode {number}")
        group, index = divmod(number - 1, self._per_group)
        descriptor = self._volume.read(self._groups_at + group * self._group_size, self._group_size)
        table = _number(descriptor, 0x8, 4)
        if self._wide:
            table |= _number(descriptor, 0x28, 4) << 32
        at = table * self.block_size + index * self._inode_size
        return self._parsed(number, self._volume.read(at, self._inode_size))

    def names(self, folder: Inode) -> Iterator[tuple[bytes, int]]:
        """These are the names in a folder, and their inodes; not itself and the one above it.

        Raises:
            UsageError: it is no folder.
            CorruptDisk: it contradicts itself.
        """
        if folder.facts.kind != "folder":
            raise UsageError(f"it is a {folder.facts.kind}, no folder")
        if folder.flags & _INLINE or folder.is_encrypted:
            raise CorruptDisk("a folder within its inode, or encrypted, is not read")
        if folder.facts.size > _MAX_FOLDER:
            raise CorruptDisk(f"a folder of {folder.facts.size} bytes")
        there = 0
        for run in self._counted_runs(folder):
            there += run.count
            for number in range(run.count):
                found = list(_names_in(self._block(run.place + number)))
                self._effort.spend(len(found) // _NAMES_OF_A_READ)
                yield from (one for one in found if one[0] not in {b".", b".."})
        if there * self.block_size < max(folder.facts.size, 1):
            raise CorruptDisk(f"of a folder of {folder.facts.size} bytes {there} blocks are there")

    def content(
        self, inode: Inode, within: Sequence[range] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """These are the parts of a file that are on the disk, by offset; what lies between is zeros.

        Args:
            inode: the file.
            within: stretches of its bytes, in rising order, of which alone something is read; None for all.

        Raises:
            UsageError: it has no content.
            CorruptDisk: it contradicts itself.
        """
        if inode.facts.kind not in {"file", "symlink"}:
            raise UsageError(f"it is a {inode.facts.kind}, no file")
        if inode.is_encrypted:
            raise UsageError("it is encrypted")
        size = inode.facts.size
        if inode.holds_content:
            if size > _IN_INODE:
                raise CorruptDisk("a file within its inode and its attributes is not read")
            yield 0, inode.blocks[:size]
            return
        for run in self._counted_runs(inode):
            start, end = run.first * self.block_size, (run.first + run.count) * self.block_size
            place = run.place * self.block_size - start
            whole = range(start, min(end, size))
            for part in [whole] if within is None else _common(whole, within):
                for at in range(part.start, part.stop, MAX_READ):
                    yield at, self._volume.read(place + at, min(MAX_READ, part.stop - at))

    def target(self, link: Inode) -> bytes:
        """This is where a symlink leads.

        Raises:
            CorruptDisk: it cannot be.
        """
        if link.facts.size > _MAX_TARGET:
            raise CorruptDisk(f"a symlink of {link.facts.size} bytes")
        if link.is_encrypted:
            return b""
        return b"".join(data for _, data in self.content(link))

    def _counted_runs(self, inode: Inode) -> Iterator[Run]:
        """These are the runs of an inode; one that has more blocks than its volume has some of them twice."""
        left = self._volume.size // self.block_size
        for run in self._runs(inode):
            left -= run.count
            if left < 0:
                raise CorruptDisk(f"inode {inode.facts.inode} has more blocks than its volume")
            yield run

    def _runs(self, inode: Inode) -> Iterator[Run]:
        if inode.flags & _EXTENTS:
            return extent_runs(inode.blocks, self._block)
        blocks = -(-inode.facts.size // self.block_size)
        return listed_runs(inode.blocks, self._block, blocks, self.block_size)

    def _block(self, number: int) -> bytes:
        return self._volume.read(number * self.block_size, self.block_size)

    def _parsed(self, number: int, raw: bytes) -> Inode:
        kind = _KINDS.get(stat.S_IFMT(_number(raw, 0x0, 2)))
        if kind is None:
            raise CorruptDisk(f"inode {number} has the mode {_number(raw, 0, 2):#o}")
        size = _number(raw, 0x4, 4)
        if kind == "file" or self._incompatible & _LARGE_FOLDERS:
            size |= _number(raw, 0x6C, 4) << 32
        if size > _MAX_SIZE:
            raise CorruptDisk(f"inode {number} has {size} bytes")
        extra = _number(raw, 0x80, 2) if self._inode_size > _OLD_INODE else 0
        facts = DiskEntry(
            path="",
            kind=kind,
            mode=stat.S_IMODE(_number(raw, 0x0, 2)),
            uid=_number(raw, 0x2, 2) | _number(raw, 0x78, 2) << 16,
            gid=_number(raw, 0x18, 2) | _number(raw, 0x7A, 2) << 16,
            size=size,
            links=_number(raw, 0x1A, 2),
            inode=number,
            generation=_number(raw, 0x64, 4),
            modified_ns=_moment(raw, 0x10, 0x88, extra),
            changed_ns=_moment(raw, 0xC, 0x84, extra),
            created_ns=_moment(raw, 0x90, 0x94, extra) if extra >= 0x98 - _OLD_INODE else None,
        )
        return Inode(facts, _number(raw, 0x20, 4), raw[0x28 : 0x28 + _IN_INODE])


def begins_ext4(volume: ImageBytes) -> bool:
    """This tells whether a volume begins as such a file system does."""
    return volume.size >= 2 * _SUPER_AT and _number(volume.read(_SUPER_AT, 64), 0x38, 2) == _MAGIC


def _common(whole: range, within: Sequence[range]) -> Iterator[range]:
    """These are the stretches that lie in one of them, too."""
    for at in range(bisect_right(within, whole.start, key=lambda one: one.stop), len(within)):
        if within[at].start >= whole.stop:
            return
        yield range(max(whole.start, within[at].start), min(whole.stop, within[at].stop))


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def _moment(raw: bytes, at: int, extra_at: int, extra: int) -> int:
    """This is a time: signed seconds, two more bits of them, and nanoseconds where there is room."""
    seconds = int.from_bytes(raw[at : at + 4], "little", signed=True)
    more = _number(raw, extra_at, 4) if extra_at + 4 - _OLD_INODE <= extra else 0
    return (seconds + ((more & 3) << 32)) * 1_000_000_000 + (more >> 2)


def _names_in(block: bytes) -> Iterator[tuple[bytes, int]]:
    """These are the names in one block of a folder.

    Raises:
        CorruptDisk: it contradicts itself.
    """
    at = 0
    while at < len(block):
        name_at = at + _DIRENT.size
        if name_at > len(block):
            raise CorruptDisk(f"a folder has {len(block) - at} bytes too much")
        inode, length, name_length, _kind = _DIRENT.unpack_from(block, at)
        if length in {0, 0xFFFF} and not at and len(block) == _MAX_BLOCK:
            length = _MAX_BLOCK  # which its field has no room for
        end = at + length
        if length % 4 or end > len(block) or name_at + name_length > end:
            raise CorruptDisk(f"an entry of {length} bytes at {at} of its block")
        if inode and name_length:
            yield block[name_at : name_at + name_length], inode
        at = end
