"""A qcow2 image as the guest sees it.

References: QEMU ``docs/interop/qcow2.txt`` (versions 2 and 3), ``block/qcow2.h`` for the bounds.

No name that is in an image is followed: what backs it is told by QEMU, and handed over.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from qvmi.disk.image import CachedImage, Effort, ImageBytes
from qvmi.errors import CorruptDisk

__all__ = ["Qcow2Image"]

_HEADER: Final = struct.Struct(">4sIQIIQIIQ")
_FEATURES: Final = struct.Struct(">QQQII")
_FEATURES_AT: Final = 72
_MAGIC: Final = b"QFI\xfb"
_MAX_SIZE: Final = 1 << 56
"""Bytes of a disk, as QEMU has it for clusters of 64 KiB and above."""
_CLUSTER_BITS: Final = range(9, 22)
_MAX_L1: Final = 4 << 20
"""Entries of the first table, which QEMU bounds at 32 MiB."""
_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1
_SECTOR: Final = 512
_SUBCLUSTERS: Final = 32

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN: Final = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_COMPRESSION_AT: Final = 104


class Qcow2Image:
    """This is the disk in a qcow2 image.

    Args:
        file: the image's own bytes.
        backing: what is seen where it has nothing; None where nothing backs it.
        effort: what may be read.

    Raises:
        CorruptDisk: it is no image that is read.
    """

    def __init__(self, file: ImageBytes, backing: ImageBytes | None, effort: Effort) -> None:
        self._effort = effort
        self._file = CachedImage(file, effort)
        self._backing = backing
        fields = _HEADER.unpack(file.read(0, _HEADER.size))
        magic, version, named_at, _, self._bits, self.size, encrypted, count, table = fields
        features = _features(file, version) if magic == _MAGIC else 0
        _require(magic == _MAGIC and version in {2, 3}, "it does not begin as a qcow2 image")
        _require(self._bits in _CLUSTER_BITS, f"clusters of 2^{self._bits} bytes")
        _require(self.size <= _MAX_SIZE and count <= _MAX_L1, f"a disk of {self.size} bytes")
        _require(not encrypted, "it is encrypted")
        _require(not named_at or backing is not None, "it is backed by an image that QEMU has not")
        self._table, self._entries = table, count
        self._subclusters = _SUBCLUSTERS if features & _EXTENDED_L2 else 1
        self._entry = struct.Struct(">QQ" if features & _EXTENDED_L2 else ">Q")
        self._has_zeros = version > 2 and not features & _EXTENDED_L2  # noqa: PLR2004 - 2 has none

    def read(self, offset: int, size: int) -> bytes:
        """This reads what the guest would; zeros behind the end.

        Raises:
            CorruptDisk: the image contradicts itself.
        """
        there = max(0, min(size, self.size - offset))
        return b"".join(self._pieces(offset, offset + there)).ljust(size, b"\0")

    def _pieces(self, offset: int, end: int) -> Iterator[bytes]:
        unit = (1 << self._bits) // self._subclusters
        while offset < end:
            self._effort.spend()
            stop = min(end, (offset // unit + 1) * unit)
            yield self._piece(offset, stop - offset)
            offset = stop

    def _piece(self, offset: int, size: int) -> bytes:
        """This reads within one cluster or subcluster."""
        cluster, within = divmod(offset, 1 << self._bits)
        entry, *bitmap = self._mapping(cluster)
        if entry & _COMPRESSED:
            return self._inflated(entry)[within : within + size].ljust(size, b"\0")
        place = entry & _OFFSET
        allocated, zero = bool(place), bool(entry & _ZERO) and self._has_zeros
        if bitmap:
            bit = within * _SUBCLUSTERS >> self._bits
            allocated = bool(bitmap[0] >> bit & 1)
            zero = bool(bitmap[0] >> (_SUBCLUSTERS + bit) & 1)
        if zero:
            return bytes(size)
        if allocated:
            return self._file.read(place + within, size)
        return bytes(size) if self._backing is None else self._backing.read(offset, size)

    def _mapping(self, cluster: int) -> tuple[int, ...]:
        """This is the entry of a cluster in the second table, zeros where there is none."""
        in_table = (1 << self._bits) // self._entry.size
        index, within = divmod(cluster, in_table)
        nothing = (0,) * (self._entry.size // 8)
        if index >= self._entries:
            return nothing
        first = int.from_bytes(self._file.read(self._table + index * 8, 8), "big") & _OFFSET
        if not first:
            return nothing
        return self._entry.unpack(
            self._file.read(first + within * self._entry.size, self._entry.size)
        )

    def _inflated(self, entry: int) -> bytes:
        """This is a cluster that is compressed."""
        bits = 62 - (self._bits - 8)
        place = entry & ((1 << bits) - 1)
        sectors = (entry >> bits & ((1 << (self._bits - 8)) - 1)) + 1
        packed = self._file.read(place, sectors * _SECTOR - place % _SECTOR)
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, 1 << self._bits)
        except zlib.error as error:
            raise CorruptDisk(f"the cluster at {place} is not compressed as it says") from error


def _features(file: ImageBytes, version: int) -> int:
    """These are the incompatible features of an image.

    Raises:
        CorruptDisk: it has some that are not read.
    """
    if version < 3:  # noqa: PLR2004 - they came with version 3
        return 0
    features, _, _, _, length = _FEATURES.unpack(file.read(_FEATURES_AT, _FEATURES.size))
    _require(not features & ~_KNOWN, f"it has the unknown features {features & ~_KNOWN:#x}")
    _require(not features & _CORRUPT, "QEMU has marked the image as corrupt")
    _require(not features & _DATA_FILE, "its data is in another file, which is not read")
    kind = file.read(_COMPRESSION_AT, 1)[0] if length > _COMPRESSION_AT else 0
    _require(not (features & _COMPRESSION and kind), "it is not compressed by zlib")
    return int(features)


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - as assert
    if not condition:
        raise CorruptDisk(problem)
