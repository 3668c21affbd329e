"""File systems and their inodes, mounted or not.

References: Linux include/linux/fs.h (``struct super_block``, ``struct inode``), fs/super.c
(``super_blocks``), fs/inode.c (``inode_sb_list_add``), include/uapi/linux/magic.h.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, TypeVar

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["FileSystem", "KnownInode", "SuperBlocks"]

Row = TypeVar("Row")

_MAX_FILE_SYSTEMS: Final = 100_000
"""What a machine full of containers has is some thousand."""
_MAX_INODES: Final = 1 << 22
"""Of one file system; so many take some 4 GiB of the guest's memory."""
_RETRIES: Final = 4
"""Looks at an inode whose neighbour in the list comes or goes."""
_MAX_TYPE: Final = 64
"""Bytes of a file system's type; the longest in the kernel has 16."""
_IN_MEMORY: Final = frozenset({0x0102_1994, 0x8584_58F6})
"""``TMPFS_MAGIC`` and ``RAMFS_MAGIC``: what is not in memory of these is zeros, or swapped out."""
_HUGE_PAGES: Final = 0x9584_58F6
"""``HUGETLBFS_MAGIC``"""
_MADE_UP: Final = frozenset({0x7472_6163, 0x6462_6720, 0x7363_6673, 0x6265_6572, 0x9FA0})
"""Magic of tracefs, debugfs, securityfs, sysfs and proc. A file of theirs is made up each time that it is
read and never has a page; of the first alone there may be 10,000."""
_POINTER: Final = Struct("<Q")


class FileSystem(NamedTuple):
    """This is one file system.

    Args:
        address: of the ``super_block``.
        device: its number as the kernel keeps it.
        type: such as ``ext4``.
        root: address of its root's dentry.
        in_memory: whether its files are nowhere else.
        huge_pages: whether it is hugetlbfs.
        made_up: whether its files are made up by the kernel, and never have pages.
    """

    address: Va
    device: int
    type: str
    root: int
    in_memory: bool
    huge_pages: bool
    made_up: bool


class KnownInode(NamedTuple):
    """These are the members of a ``struct inode`` that are used; ``address`` is its own."""

    address: Va
    mode: int
    super_block: int
    number: int
    links: int
    device: int
    size: int
    alias: int
    host: int
    pages: int
    changed: int


class SuperBlocks:
    """This lists the file systems of one kernel, and their inodes.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._all = address(symbols, "super_blocks")
        self._link = field_offset(symbols, "super_block", "s_list")
        self._inodes = field_offset(symbols, "super_block", "s_inodes")
        self._type_name = field_offset(symbols, "file_system_type", "name")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_super = compile_reader(
            space,
            (self._link, "Q"),
            (self._link + 8, "Q"),
            (field_offset(symbols, "super_block", "s_dev"), "I"),
            (field_offset(symbols, "super_block", "s_type"), "Q"),
            (field_offset(symbols, "super_block", "s_magic"), "Q"),
            (field_offset(symbols, "super_block", "s_root"), "Q"),
        )
        self._inode_link = field_offset(symbols, "inode", "i_sb_list")
        self.pages = field_offset(symbols, "inode", "i_data")
        self._read_inode = compile_reader(space, *self._inode_members(symbols))
        self._most_pages = sum(ram.size for ram in space.memory.ranges) >> 12

    def all(self) -> ListWalk[FileSystem]:
        """This lists the file systems.

        Raises:
            WalkFailed: the list of them cannot be walked at all.
        """
        shape = ListShape(
            "super_block.s_list", self._link, self._read_super, self._visit, _MAX_FILE_SYSTEMS
        )
        return walk_list(self._space, self._all, shape)

    def inodes(
        self, of: FileSystem, effort: Effort, keep: Callable[[KnownInode], Row | None]
    ) -> ListWalk[Row]:
        """This lists what is wanted of the inodes of one file system.

        Args:
            of: the file system.
            effort: what it may cost.
            keep: makes a row of an inode; None for one that is not wanted.

        Raises:
            WalkFailed: the list of them cannot be walked at all.
            Spent: enough was looked at.
        """

        def visit(at: Va, values: tuple[Any, ...]) -> Row | None:
            effort.spend(1)
            inode = self._known(at, values)
            if inode.super_block != of.address:
                raise Implausible(f"an inode of the file system at {inode.super_block:#x}")
            return keep(inode)

        shape = ListShape("inode.i_sb_list", self._inode_link, self._read_inode, visit, _MAX_INODES)
        walk = walk_list(self._space, Va(of.address + self._inodes), shape)
        kept = {at: row for at, row in walk.rows.items() if row is not None}
        return ListWalk(kept, walk.gaps, walk.retries)

    def inode(self, at: Va) -> KnownInode:
        """This reads one inode.

        Raises:
            MemoryFault: it cannot be read.
            Implausible: none lies there, or none that is in use.
        """
        link = at + self._inode_link
        for _ in range(_RETRIES):
            values = self._read_inode(at)
            following = values[0]
            if following != link and self._read_pointer(following + _POINTER.size)[0] == link:
                return self._known(at, values)
        raise Implausible(f"the inode at {at:#x} is on no list: it was freed")

    def file_system(self, at: int) -> FileSystem:
        """This reads one file system.

        Raises:
            MemoryFault: it cannot be read.
        """
        return self._visit(Va(at), self._read_super(at))

    def _visit(self, at: Va, values: tuple[Any, ...]) -> FileSystem:
        _, _, device, kind, magic, root = values
        name = self._read_pointer(kind + self._type_name)[0]
        type_ = text_of(self._space.read_string(Va(name), _MAX_TYPE))
        kinds = magic in _IN_MEMORY, magic == _HUGE_PAGES, magic in _MADE_UP
        return FileSystem(at, device, type_, root, *kinds)

    def _known(self, at: Va, values: tuple[Any, ...]) -> KnownInode:
        inode = KnownInode(at, *values[2:])
        if inode.host != at:
            raise Implausible(f"no inode at {at:#x}: its pages are of {inode.host:#x}")
        if inode.pages > self._most_pages:
            raise Implausible(f"an inode of {inode.pages} pages in memory")
        return inode

    def _inode_members(self, symbols: Symbols) -> list[tuple[int, str]]:
        def of(name: str) -> int:
            return field_offset(symbols, "inode", name)

        return [
            (self._inode_link, "Q"),
            (self._inode_link + 8, "Q"),
            (of("i_mode"), "H"),
            (of("i_sb"), "Q"),
            (of("i_ino"), "Q"),
            (of("i_nlink"), "I"),
            (of("i_rdev"), "I"),
            (of("i_size"), "q"),
            (of("i_dentry"), "Q"),
            (self.pages + field_offset(symbols, "address_space", "host"), "Q"),
            (self.pages + field_offset(symbols, "address_space", "nrpages"), "Q"),
            # Hidden behind functions in 6.6 (13bc24457850), without its struct since 6.11 (3aa63a569c64);
            # the seconds come first in it.
            (field_offset(symbols, "inode", "i_ctime_sec", "__i_ctime", "i_ctime"), "q"),
        ]
