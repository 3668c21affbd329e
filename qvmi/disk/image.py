"""Bytes of a disk by their place: in a file, in a part of another image, or in memory for a while."""

import os
from collections import OrderedDict
from typing import Final, Protocol

from qvmi.errors import CorruptDisk

__all__ = ["MAX_READ", "CachedImage", "Effort", "FileImage", "ImageBytes", "ImagePart"]

MAX_READ: Final = 1 << 21
"""Bytes that are read at once at most: a cluster of a qcow2 image has no more."""
_MAX_READS: Final = 1 << 19
"""Reads that one look takes at most. A folder of 100,000 names takes some ten thousand; what takes more
leads nowhere, or in circles. So many take a few seconds."""
_AS_MUCH: Final = 1 << 16
"""Bytes that cost about as much as a read does."""
_BLOCK: Final = 4096
_MAX_BLOCKS: Final = 1024
"""Blocks that are kept: 4 MiB. Inodes and tables lie beside one another."""


class Effort:
    """This counts what one look has read, and ends it when that was enough or nobody waits any more."""

    def __init__(self) -> None:
        self._left = _MAX_READS
        self._stopped = False

    def renew(self) -> None:
        """This lets the next part of a look read as much."""
        self._left = _MAX_READS

    def stop(self) -> None:
        """This ends the look at its next read; it may be called by another thread."""
        self._stopped = True

    def spend(self, count: int = 1) -> None:
        """This takes note of reads, or of what costs as much.

        Raises:
            CorruptDisk: there were too many, or the look was stopped.
        """
        self._left -= count
        if self._left < 0 or self._stopped:
            raise CorruptDisk(
                "stopped" if self._stopped else f"more than {_MAX_READS} reads: it leads nowhere"
            )


class ImageBytes(Protocol):
    """This is a disk, or a part of one."""

    @property
    def size(self) -> int:
        """This is how many bytes it has."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """This reads exactly so many bytes, zeros behind the end.

        Raises:
            CorruptDisk: they cannot be had.
        """
        ...


class FileImage:
    """This is an open file.

    Args:
        descriptor: of the file, which stays the caller's; its offset is not used.
        effort: what may be read.
    """

    def __init__(self, descriptor: int, effort: Effort) -> None:
        self._descriptor = descriptor
        self._effort = effort

    @property
    def size(self) -> int:
        """This is how many bytes it has now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """This reads what is there, and zeros behind the end, as QEMU does."""
        if not 0 <= size <= MAX_READ or not 0 <= offset < 1 << 63:
            raise CorruptDisk(f"{size} bytes at {offset}")
        parts: list[bytes] = []
        left = size
        while left:
            self._effort.spend(1 + left // _AS_MUCH)
            try:
                data = os.pread(self._descriptor, left, offset)
            except OSError as error:
                raise CorruptDisk(f"{size} bytes at {offset}: {error.strerror}") from error
            if not data:
                break
            parts.append(data)
            offset, left = offset + len(data), left - len(data)
        return b"".join(parts).ljust(size, b"\0")


class ImagePart:
    """This is a part of an image, such as a partition.

    Args:
        image: of which it is a part.
        start: of its first byte there.
        size: how many bytes it has.
    """

    def __init__(self, image: ImageBytes, start: int, size: int) -> None:
        self._image = image
        self._start = start
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """This reads of the part; what is behind its end it has not.

        Raises:
            CorruptDisk: it has not so many bytes.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CorruptDisk(f"{size} bytes at {offset} of a volume of {self.size}")
        return self._image.read(self._start + offset, size)


class CachedImage:
    """This keeps blocks of an image that were read, for one look.

    Args:
        image: that is read.
        effort: counts also what is kept already: a circle reads the same again and again.
    """

    def __init__(self, image: ImageBytes, effort: Effort) -> None:
        self._image = image
        self._effort = effort
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        """This is how many bytes it has."""
        return self._image.size

    def read(self, offset: int, size: int) -> bytes:
        """This reads small pieces by way of what is kept, large ones directly.

        Raises:
            CorruptDisk: they cannot be had, or enough was read.
        """
        self._effort.spend(1 + max(0, size) // _AS_MUCH)
        block, within = divmod(offset, _BLOCK)
        if within + size > _BLOCK or (block + 1) * _BLOCK > self.size:
            return self._image.read(offset, size)
        data = self._kept.get(block)
        if data is None:
            data = self._kept[block] = self._image.read(block * _BLOCK, _BLOCK)
            if len(self._kept) > _MAX_BLOCKS:
                self._kept.popitem(last=False)
        return data[within : within + size]
