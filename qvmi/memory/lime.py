"""The memory in the files of LiME and AVML: ranges, each behind a header of its own.

References: LiME ``doc/README.md``, "Memory Range Header Version 1 Specification"; AVML
``src/image.rs`` (``Header::encode``, ``copy_block``): version 2 has the range as a Snappy stream,
and the stream's size behind it in 8 bytes; blocks full of zeros are left out.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from qvmi.memory.dump_contents import DumpContents, checked_piece, without_overlaps
from qvmi.memory.input_file import InputFile
from qvmi.memory.mapped_ram import RamFile
from qvmi.memory.snappy_stream import ChunkIndex, index_stream

__all__ = ["AVML_MAGIC", "LIME_MAGIC", "compressed_chunks", "lime_contents"]

LIME_MAGIC: Final = b"EMiL\x01\0\0\0"
"""``0x4C694D45`` and the version."""
AVML_MAGIC: Final = b"AVML\x02\0\0\0"
_HEADER: Final = Struct("<8sQQ8x")
"""Magic and version, first and last address, and what is reserved."""
_STREAM_SIZE: Final = Struct("<Q")
_MAX_RANGES: Final = 1 << 17
"""AVML cuts ranges into 16 MiB: enough for 2 TiB."""


def lime_contents(file: InputFile) -> DumpContents:
    """This reads the headers of a LiME file.

    Raises:
        NotADump: something else stands where a header should, or the file ends within a range.
    """
    return DumpContents("LiME", without_overlaps(file, _pieces(file)))


def _pieces(file: InputFile) -> Iterator[RamFile]:
    offset = count = 0
    while offset < file.size:
        start, size = _range(file, offset, LIME_MAGIC, count=count)
        yield checked_piece(file, start, size, offset + _HEADER.size)
        offset += _HEADER.size + size
        count += 1


def compressed_chunks(file: InputFile) -> ChunkIndex:
    """This finds the chunks of an AVML file, without decompressing any.

    Raises:
        NotADump: something else stands where a header should, the file ends within a range, or a
            range is told to be larger or smaller than its chunks.
    """
    index = ChunkIndex()
    offset = count = 0
    while offset < file.size:
        start, size = _range(file, offset, AVML_MAGIC, count=count)
        begin = offset + _HEADER.size
        end = index_stream(file, index, start=start, size=size, offset=begin)
        told = file.unpack(_STREAM_SIZE, end)[0]
        if told != end - begin:
            raise file.refusal(f"contradicts itself: {told} compressed bytes at {begin:#x}")
        offset = end + _STREAM_SIZE.size
        count += 1
    return index


def _range(file: InputFile, offset: int, expected: bytes, *, count: int) -> tuple[int, int]:
    """This reads one header: first address and size."""
    magic, first, last = file.unpack(_HEADER, offset)
    if magic != expected:
        raise file.refusal(f"has no header of a memory range at {offset:#x}, where one must be")
    if last < first or count >= _MAX_RANGES:
        raise file.refusal(f"has a range from {first:#x} to {last:#x} as number {count}")
    return first, last - first + 1
