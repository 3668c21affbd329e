"""Where the chunks of a Snappy stream lie, found by their headers alone.

References: Snappy ``framing_format.txt``: a chunk is its kind, its size in 3 bytes, and its body; that
of a data chunk begins with a checksum, and has at most 65536 bytes uncompressed. Snappy
``format_description.txt``: compressed data begins with the uncompressed size as a varint.
"""

from array import array
from collections.abc import Sequence
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.memory.dump_contents import MAX_ADDRESS
from qvmi.memory.input_file import InputFile
from qvmi.memory.ranges import joined

__all__ = ["CHUNK_HEADER_SIZE", "IDENTIFIER", "MAX_CHUNK", "ChunkIndex", "index_stream"]

IDENTIFIER: Final = b"\xff\x06\x00\x00sNaPpY"
"""The chunk that every stream begins with."""
MAX_CHUNK: Final = 1 << 16
"""Most bytes of a data chunk uncompressed."""
CHUNK_HEADER_SIZE: Final = 4
_CHECKSUM_SIZE: Final = 4
_VARINT_SIZE: Final = 3
"""Bytes of a size up to 65536."""
_COMPRESSED, _UNCOMPRESSED, _FIRST_SKIPPABLE = 0x00, 0x01, 0x80
_MAX_CHUNKS: Final = 1 << 22
"""A file of 256 GiB has as many full ones; smaller ones are not worth an index without end."""
_MAX_SKIPPED: Final = 1 << 16
"""Chunks without data, which nobody writes into a dump."""


class ChunkIndex:
    """This tells which chunk holds a guest physical address.

    The arrays have an item for each data chunk: its first address, its uncompressed size, and the
    offset and size in the file, header included.
    """

    __slots__ = ("_streams", "lengths", "offsets", "sizes", "skipped", "starts")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.lengths = array("I")
        self.offsets = array("Q")
        self.sizes = array("I")
        self.skipped = 0
        self._streams: list[PaRange] = []

    @property
    def ranges(self) -> Sequence[PaRange]:
        """These are the addresses that there are chunks for, joined."""
        return joined(self._streams)

    def begin(self, file: InputFile, stream: PaRange) -> None:
        """This begins with the chunks of another range; each address has one chunk at most.

        Raises:
            NotADump: the range lies before or in the one before, or there are no such addresses.
        """
        if not 0 <= stream.start < stream.end <= MAX_ADDRESS:
            raise file.refusal(f"tells of memory from {stream.start:#x} to {stream.end:#x}")
        if self._streams and stream.start < self._streams[-1].end:
            raise file.refusal(f"has its ranges out of order at {stream.start:#x}")
        self._streams.append(stream)


def index_stream(file: InputFile, index: ChunkIndex, *, start: int, size: int, offset: int) -> int:
    """This adds the chunks of one stream to the index.

    Args:
        file: that holds it.
        index: to add to.
        start: the address of the stream's first byte.
        size: bytes that it has uncompressed.
        offset: of the stream in the file.

    Returns:
        The offset behind it.

    Raises:
        NotADump: it is no such stream, or has another size.
    """
    index.begin(file, PaRange(Pa(start), Pa(start + size)))
    if file.read(offset, len(IDENTIFIER)) != IDENTIFIER:
        raise file.refusal(f"has no Snappy stream at {offset:#x}, where one must be")
    offset += len(IDENTIFIER)
    end = start + size
    while start < end:
        length, chunk_size = _chunk(file, offset)
        if length > end - start or len(index.starts) >= _MAX_CHUNKS:
            raise file.refusal(f"has a chunk of {length} bytes too many at {offset:#x}")
        if length:
            index.starts.append(start)
            index.lengths.append(length)
            index.offsets.append(offset)
            index.sizes.append(chunk_size)
        else:
            index.skipped += 1
            if index.skipped > _MAX_SKIPPED:
                raise file.refusal(f"has more than {_MAX_SKIPPED} chunks without data")
        start += length
        offset += chunk_size
    return offset


def _chunk(file: InputFile, offset: int) -> tuple[int, int]:
    """This reads a chunk's header: bytes uncompressed, 0 for a chunk without data, and in the file."""
    wanted = CHUNK_HEADER_SIZE + _CHECKSUM_SIZE + _VARINT_SIZE
    head = file.read(offset, min(wanted, max(CHUNK_HEADER_SIZE, file.size - offset)))
    kind, body = head[0], int.from_bytes(head[1:CHUNK_HEADER_SIZE], "little")
    chunk_size = CHUNK_HEADER_SIZE + body
    if offset + chunk_size > file.size:
        raise file.refusal(f"is cut off within the chunk at {offset:#x}")
    if kind >= _FIRST_SKIPPABLE:
        return 0, chunk_size
    if kind == _UNCOMPRESSED:
        length = body - _CHECKSUM_SIZE
    elif kind == _COMPRESSED:
        length = _varint(head[CHUNK_HEADER_SIZE + _CHECKSUM_SIZE :])
    else:
        raise file.refusal(f"has a chunk of the unknown kind {kind:#x} at {offset:#x}")
    if not 0 < length <= MAX_CHUNK:
        raise file.refusal(f"has a chunk of {length} bytes at {offset:#x}, not 1 to {MAX_CHUNK}")
    return length, chunk_size


def _varint(data: bytes) -> int:
    """This is a number of 7 bits a byte, the lowest first; one that goes on behind them is too large."""
    number = 0
    for place, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that another byte follows
            return number
    return MAX_CHUNK + 1
