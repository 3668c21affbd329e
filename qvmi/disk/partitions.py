"""The partitions of a disk.

References: UEFI specification 2.10, chapter 5 (GPT); Linux ``block/partitions/msdos.c`` (extended partitions,
whose logical ones are numbered from 5 on) and ``block/partitions/efi.c``.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from qvmi.disk.image import ImageBytes
from qvmi.disk.rows import Volume
from qvmi.errors import CorruptDisk

__all__ = ["partitions"]

_SECTOR: Final = 512
_SECTORS: Final = (512, 4096)
"""Bytes of a block, in which GPT counts; nothing on the disk tells."""
_MARK: Final = b"\x55\xaa"
_MARK_AT: Final = 510
_ENTRY: Final = struct.Struct("<B3xB3xII")
_ENTRIES_AT: Final = 446
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE
_ACTIVE: Final = frozenset({0x00, 0x80})
_MAX_LOGICAL: Final = 128
"""Logical partitions that are looked for; Linux takes 255 partitions of a disk."""
_FIRST_LOGICAL: Final = 5

_GPT: Final = struct.Struct("<8sIIII4Q16sQIII")
_GPT_MAGIC: Final = b"EFI PART"
_GPT_ENTRY: Final = struct.Struct("<16s16sQQ")
_MAX_GPT: Final = 1024
"""Entries of a table; 128 unless somebody wanted more."""
_GPT_SIZES: Final = frozenset({128, 256, 512, 1024})


def partitions(disk: ImageBytes, gaps: list[str]) -> list[Volume]:
    """These are the partitions of a disk, by number; none where there is no table.

    Args:
        disk: the whole of it.
        gaps: what is wrong with the table is added here.

    Raises:
        CorruptDisk: the disk cannot be read.
    """
    sector = disk.read(0, _SECTOR)
    if sector[_MARK_AT:] != _MARK:
        return []
    entries = _entries(sector)
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        return _gpt(disk, gaps)
    if any(active not in _ACTIVE for active, _, _, _ in entries):
        return []  # code of a boot sector, and no table
    found: list[Volume] = []
    for number, (_, kind, start, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            found += _logical(disk, start, gaps)
        elif kind and count:
            found += _volume(disk, (number, start * _SECTOR, count * _SECTOR), "mbr", gaps)
    return sorted(found, key=lambda volume: volume.number)


def _entries(sector: bytes) -> list[tuple[int, int, int, int]]:
    """These are the four entries of a boot record: active, type, first sector, count of sectors."""
    return [_ENTRY.unpack_from(sector, _ENTRIES_AT + 16 * number) for number in range(4)]


def _logical(disk: ImageBytes, first: int, gaps: list[str]) -> Iterator[Volume]:
    """These are the partitions in an extended one: a chain of boot records, which may be a loop."""
    at, seen, number = first, {0}, _FIRST_LOGICAL
    while at not in seen and len(seen) <= _MAX_LOGICAL:
        seen.add(at)
        sector = disk.read(at * _SECTOR, _SECTOR)
        if sector[_MARK_AT:] != _MARK:
            gaps.append(f"partition table: there is no boot record at sector {at}")
            return
        following = 0
        for _, kind, start, count in _entries(sector):
            if kind in _EXTENDED:
                following = following or first + start
            elif kind and count:
                place = (number, (at + start) * _SECTOR, count * _SECTOR)
                yield from _volume(disk, place, "mbr", gaps)
                number += 1
        if not following:
            return
        at = following
    gaps.append(f"partition table: the chain of logical partitions does not end at sector {at}")


def _gpt(disk: ImageBytes, gaps: list[str]) -> list[Volume]:
    """These are the partitions of a GUID partition table, by its first copy or else by its second."""
    problem = ""
    for block in _SECTORS:
        for at in (block, disk.size // block * block - block):
            try:
                return _gpt_at(disk, at, block, gaps)
            except CorruptDisk as error:
                problem = problem or str(error)
    gaps.append(f"partition table: {problem}")
    return []


def _gpt_at(disk: ImageBytes, at: int, block: int, gaps: list[str]) -> list[Volume]:
    header = bytearray(disk.read(at, block))
    fields = _GPT.unpack_from(header)
    magic, _, length, checksum, *_, table, count, size, table_checksum = fields
    if magic != _GPT_MAGIC or not _GPT.size <= length <= block:
        raise CorruptDisk("it has no header of a GUID partition table")
    header[16:20] = bytes(4)
    if zlib.crc32(header[:length]) != checksum:
        raise CorruptDisk("the checksum of its header is wrong")
    if count > _MAX_GPT or size not in _GPT_SIZES:
        raise CorruptDisk(f"{count} entries of {size} bytes")
    entries = disk.read(table * block, count * size)
    if zlib.crc32(entries) != table_checksum:
        raise CorruptDisk("the checksum of its entries is wrong")
    found: list[Volume] = []
    for number in range(count):
        kind, _, first, last = _GPT_ENTRY.unpack_from(entries, number * size)
        if any(kind):
            place = (number + 1, first * block, (last - first + 1) * block)
            found += _volume(disk, place, "gpt", gaps)
    return found


def _volume(
    disk: ImageBytes, place: tuple[int, int, int], scheme: str, gaps: list[str]
) -> Iterator[Volume]:
    """This is a partition, if it lies on the disk."""
    number, start, size = place
    if size > 0 and start + size <= disk.size:
        yield Volume(number, start, size, scheme)
    else:
        gaps.append(f"partition {number}: {size} bytes at {start} of a disk of {disk.size}")
