"""Where the content of a file of ext2, ext3 or ext4 is on its volume: by extents, or block by block.

References: Linux Documentation/filesystems/ext4/ifork.rst (``struct ext4_extent``, indirect blocks).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.errors import CorruptDisk

__all__ = ["ReadBlock", "Run", "extent_runs", "listed_runs"]

ReadBlock = Callable[[int], bytes]
"""Reads a block of the volume by its number."""

_EXTENT_HEADER: Final = struct.Struct("<HHHHI")
_EXTENT: Final = struct.Struct("<IHHI")
_INDEX: Final = struct.Struct("<IIHH")
_MAGIC: Final = 0xF30A
_MAX_DEPTH: Final = 5
"""Levels of extents, as ext4 has it (``EXT4_MAX_EXTENT_DEPTH``)."""
_UNWRITTEN: Final = 0x8000
"""An extent of more blocks than these is so many fewer, and reads as zeros."""
_DIRECT: Final = 12
_POINTER: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """This is a stretch of a file that is on the volume in one piece.

    Args:
        first: its first block, by the number in the file.
        count: how many blocks it has.
        place: number of its first block on the volume.
    """

    first: int
    count: int
    place: int


def extent_runs(root: bytes, read: ReadBlock) -> Iterator[Run]:
    """This walks a tree of extents, by rising block of the file; what lies between is a hole.

    Args:
        root: the 60 bytes in the inode.
        read: reads a block of the volume.

    Raises:
        CorruptDisk: the tree contradicts itself.
    """
    end = 0
    for run in _extents(root, read, None):
        if run.first < end:
            raise CorruptDisk(f"extents overlap at block {run.first} of the file")
        end = run.first + run.count
        if run.place:
            yield run


def _extents(node: bytes, read: ReadBlock, depth: int | None) -> Iterator[Run]:
    """These are the extents in a part of the tree; one that was never written has no place.

    Each level says how deep it is, and must be less deep than the one above: no tree is a circle.
    """
    magic, count, _, own, _ = _EXTENT_HEADER.unpack_from(node)
    room = len(node) // _EXTENT.size - 1
    if magic != _MAGIC or count > room or own > _MAX_DEPTH or depth not in {None, own}:
        raise CorruptDisk(f"a node of the tree of extents: {count} entries of depth {own}")
    for number in range(1, count + 1):
        if own:
            _, low, high, _ = _INDEX.unpack_from(node, number * _INDEX.size)
            yield from _extents(read(high << 32 | low), read, own - 1)
            continue
        first, length, high, low = _EXTENT.unpack_from(node, number * _EXTENT.size)
        if length > _UNWRITTEN:
            yield Run(first, length - _UNWRITTEN, 0)
        elif length:
            yield Run(first, length, high << 32 | low)


def listed_runs(pointers: bytes, read: ReadBlock, blocks: int, block_size: int) -> Iterator[Run]:
    """This walks a list of blocks, as ext2 and ext3 keep it; a number of 0 is a hole.

    Args:
        pointers: the 60 bytes in the inode.
        read: reads a block of the volume.
        blocks: how many blocks the file has.
        block_size: bytes of each.

    Raises:
        CorruptDisk: a block of the list cannot be read.
    """
    numbers = struct.unpack("<15I", pointers)
    for first, place in enumerate(numbers[:_DIRECT]):
        if place and first < blocks:
            yield Run(first, 1, place)
    first, span = _DIRECT, 1
    in_block = block_size // _POINTER
    for place in numbers[_DIRECT:]:
        if first < blocks and place:
            yield from _listed(read(place), read, first, blocks, span)
        span *= in_block
        first += span


def _listed(table: bytes, read: ReadBlock, first: int, blocks: int, span: int) -> Iterator[Run]:
    """These are the blocks below one block of numbers, each of which stands for so many blocks."""
    in_block = len(table) // _POINTER
    for (place,) in struct.iter_unpack("<I", table):
        if first >= blocks:
            return
        if place and span == 1:
            yield Run(first, 1, place)
        elif place:
            yield from _listed(read(place), read, first, blocks, span // in_block)
        first += span
