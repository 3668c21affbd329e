"""RAM in a file of Snappy chunks: each is decompressed when it is read, and checked.

References: as ``snappy_stream``; cramjam, whose decoder compares the checksum of every chunk.
"""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.errors import MemoryFault, UsageError
from qvmi.memory.physical import Window
from qvmi.memory.snappy_stream import IDENTIFIER, ChunkIndex

__all__ = ["SnappyRam"]

_MAX_CACHED: Final = 1024
"""Chunks kept uncompressed, the last ones used: 64 MiB, a kernel's image and what a walk reads."""


class SnappyRam:
    """This is guest RAM in an AVML file.

    Args:
        path: of the file; may be a ``/proc/self/fd/N`` link.
        index: where its chunks are.

    Raises:
        UsageError: the library that decompresses is not installed.
        MemoryFault: the file cannot be opened.
    """

    __slots__ = (
        "_cache",
        "_decompress",
        "_descriptor",
        "_failed",
        "_index",
        "description",
        "ranges",
    )

    def __init__(self, path: Path, index: ChunkIndex) -> None:
        try:
            import cramjam  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise UsageError(
                "an AVML file is compressed with Snappy: pip install 'qvmi[avml]', or convert it to"
                " LiME (avml-convert)"
            ) from error
        self._decompress, self._failed = cramjam.snappy.decompress, cramjam.DecompressionError
        self._index = index
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self.ranges: Sequence[PaRange] = index.ranges
        self.description = f"Snappy chunks of {path}"
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MemoryFault(self.ranges[0].start, 0, why=f"{path}: {error.strerror}") from error

    @property
    def windows(self) -> Sequence[Window]:
        """There are none: what is compressed cannot be read in place."""
        return ()

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: the file does not hold all of it, a chunk is damaged, or the memory was
                closed.
        """
        self._require(pa, size)
        parts: list[bytes] = []
        here, end = pa, pa + size
        number = bisect_right(self._index.starts, pa) - 1
        while here < end:
            start = here - self._index.starts[number]
            part = self._chunk(number, here)[start : start + end - here]
            parts.append(part)
            here = Pa(here + len(part))
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates all ranges: which chunks are full of zeros only their decompression tells.

        Raises:
            MemoryFault: the memory was closed.
        """
        for one in self.ranges:
            self._require(one.start, 0)
            yield one

    def close(self) -> None:
        """This closes the file; later reads fault."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._cache.clear()

    def _require(self, pa: Pa, size: int) -> None:
        """This raises unless one run of memory holds a range: nothing is decompressed in vain."""
        if self._descriptor < 0:
            raise MemoryFault(pa, size, why="the memory was closed")
        at = bisect_right(self.ranges, pa, key=lambda one: one.start) - 1
        if at < 0 or size < 0 or not pa + size <= self.ranges[at].end:
            first = pa if at < 0 else max(pa, self.ranges[at].end)
            raise MemoryFault(first if size > 0 else pa, size, why="not in the dump")

    def _chunk(self, number: int, pa: Pa) -> bytes:
        """This is what a chunk holds."""
        found = self._cache.pop(number, None)
        if found is None:
            found = self._decompressed(number, pa)
            while len(self._cache) >= _MAX_CACHED:
                self._cache.popitem(last=False)
        self._cache[number] = found
        return found

    def _decompressed(self, number: int, pa: Pa) -> bytes:
        size, length = self._index.sizes[number], self._index.lengths[number]
        try:
            chunk = os.pread(self._descriptor, size, self._index.offsets[number])
            data = bytes(self._decompress(IDENTIFIER + chunk))
        except OSError as error:
            raise MemoryFault(pa, length, why=f"the dump: {error.strerror}") from error
        except self._failed as error:
            raise MemoryFault(pa, length, why=f"the dump is damaged there: {error}") from error
        if len(data) != length:
            why = f"the dump is damaged there: {len(data)} bytes, not {length}"
            raise MemoryFault(pa, length, why=why)
        return data
