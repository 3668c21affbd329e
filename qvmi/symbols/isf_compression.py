"""Compression of ISF files: told by the name when writing, by the first bytes when reading."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Final

from qvmi.errors import CorruptTable

__all__ = ["compress", "decompress"]

_XZ_PRESET: Final = 1
_GZIP_LEVEL: Final = 6
_BZIP2_LEVEL: Final = 9
_MAX_XZ_MEMORY: Final = 128 << 20
"""``xz -9`` needs 65 MiB to decompress; a file may ask for gigabytes."""

_CHUNK: Final = 1 << 20
"""Bytes decompressed at once, so that the bound on the whole is not overshot by more."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_BZIP2_MAGIC: Final = b"BZh"
_XZ_MAGIC: Final = b"\xfd7zXZ\0"


def compress(data: bytes, name: str) -> bytes:
    """This compresses data as the ending of a file's name says; the same data always alike."""
    if name.endswith(".xz"):
        return lzma.compress(data, preset=_XZ_PRESET)
    if name.endswith(".gz"):
        return gzip.compress(data, _GZIP_LEVEL, mtime=0)
    if name.endswith(".bz2"):
        return bz2.compress(data, _BZIP2_LEVEL)
    return data


def decompress(file: IO[bytes], name: str, *, limit: int) -> bytearray:
    """This reads a whole file, decompressed if it is compressed.

    Args:
        file: open for reading, and for seeking.
        name: of the file, for errors.
        limit: most bytes of the result.

    Raises:
        CorruptTable: the file is damaged, or holds more than the limit.
        OSError: the file cannot be read.
    """
    found = bytearray()
    try:
        for chunk in _chunks(file):
            found += chunk
            if len(found) > limit:
                raise CorruptTable(name, f"it holds more than {limit >> 20} MiB")
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorruptTable(name, f"it is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # not the system's: gzip and bz2 complain so of damaged data
            raise CorruptTable(name, f"it is damaged: {error}") from error
        raise
    return found


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    start = file.read(len(_XZ_MAGIC))
    file.seek(0)
    if start == _XZ_MAGIC:
        yield from _xz_chunks(file)
    elif start.startswith(_GZIP_MAGIC):
        yield from _plain_chunks(gzip.GzipFile(fileobj=file))
    elif start.startswith(_BZIP2_MAGIC):
        yield from _plain_chunks(bz2.BZ2File(file))
    else:
        yield from _plain_chunks(file)


def _plain_chunks(file: IO[bytes] | gzip.GzipFile | bz2.BZ2File) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _xz_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """This decompresses xz within a bound on memory, which :mod:`lzma`'s files do not offer."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
    while not decompressor.eof:
        packed = file.read(_CHUNK) if decompressor.needs_input else b""
        if decompressor.needs_input and not packed:
            raise EOFError("it ends too early")
        yield decompressor.decompress(packed, _CHUNK)
