"""Dumps written by hand, from the documents alone: ELF core, LiME, and AVML with its Snappy streams.

References: elf(5); LiME ``doc/README.md``; AVML ``src/image.rs``; Snappy ``framing_format.txt`` and
``format_description.txt``; RFC 3720, appendix B.4 (CRC-32C).
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["avml", "chunk", "elf_core", "lime", "range_header", "snappy_frames", "vmcoreinfo_note"]

PAGE = 4096


def vmcoreinfo_note(text: bytes) -> bytes:
    """This is an ELF note of the kernel's."""
    return struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text + bytes(-len(text) % 4)


def elf_core(
    path: Path, runs: Mapping[int, bytes], *, notes: bytes = b"", extended: bool = False
) -> Path:
    """This writes an ELF core; extended: the number of program headers stands in section 0."""
    count = len(runs) + 1
    here = 64 + 56 * count + 64 + len(notes)
    body = b""
    programs = [(4, 4, 64 + 56 * count + 64, 0, 0, len(notes), len(notes), 4)]
    for start, data in runs.items():
        programs.append(
            (1, 7, here + len(body), 0xFFFF888000000000 + start, start, len(data), len(data), PAGE)
        )
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    section_at, sections = (64 + 56 * count, 1) if extended else (0, 0)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, section_at, 0, 64, 56,
        0xFFFF if extended else count, 64, sections, 0,
    )  # fmt: skip
    table = b"".join(struct.pack("<IIQQQQQQ", *program) for program in programs)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count if extended else 0, 0, 0)
    path.write_bytes(head + table + section + notes + body)
    return path


def range_header(start: int, size: int, *, compressed: bool = False) -> bytes:
    """This is the header of a range; its last address is one that belongs to it."""
    magic, version = (0x4C4D5641, 2) if compressed else (0x4C694D45, 1)
    return struct.pack("<IIQQQ", magic, version, start, start + size - 1, 0)


def lime(path: Path, runs: Mapping[int, bytes]) -> Path:
    """This writes a LiME file."""
    path.write_bytes(b"".join(range_header(at, len(data)) + data for at, data in runs.items()))
    return path


def avml(path: Path, runs: Mapping[int, bytes], *, size: int = 1000, plain: bool = False) -> Path:
    """This writes an AVML file.

    Args:
        path: of the file.
        runs: of memory.
        size: bytes of a chunk.
        plain: whether chunks are stored uncompressed.
    """
    parts = []
    for start, data in runs.items():
        stream = snappy_frames(data, size=size, plain=plain)
        header = range_header(start, len(data), compressed=True)
        parts.append(header + stream + struct.pack("<Q", len(stream)))
    path.write_bytes(b"".join(parts))
    return path


def snappy_frames(data: bytes, *, size: int, plain: bool = False) -> bytes:
    """This is a Snappy stream, every other chunk followed by padding."""
    parts = [b"\xff\x06\x00\x00sNaPpY"]
    for number, at in enumerate(range(0, len(data), size)):
        parts.append(chunk(data[at : at + size], plain=plain))
        if number % 2 and at + size < len(data):
            parts.append(b"\xfe\x03\x00\x00\0\0\0")
    return b"".join(parts)


def chunk(data: bytes, *, plain: bool = False) -> bytes:
    """This is a data chunk; compressed means here that it is told to consist of literals."""
    body = struct.pack("<I", _masked(_crc32c(data)))
    body += data if plain else _varint(len(data)) + b"".join(map(_literal, _pieces(data)))
    return bytes([1 if plain else 0]) + len(body).to_bytes(3, "little") + body


def _pieces(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 60] for at in range(0, len(data), 60))


def _literal(data: bytes) -> bytes:
    return bytes([len(data) - 1 << 2]) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum ^ 0xFFFFFFFF
