"""Bytes as people read them: sixteen a line, in hexadecimal and as text."""

from collections.abc import Iterator
from typing import Final

__all__ = ["BYTES_A_LINE", "hexdump"]

BYTES_A_LINE: Final = 16

_HALF: Final = BYTES_A_LINE // 2
_HEX_WIDTH: Final = 3 * BYTES_A_LINE
_SHOWN: Final = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in range(256))  # noqa: PLR2004 - printable ASCII


def hexdump(data: bytes, address: int) -> Iterator[str]:
    """This yields the lines; each is independent of the others.

    Args:
        data: the bytes.
        address: of the first one.
    """
    for start in range(0, len(data), BYTES_A_LINE):
        line = data[start : start + BYTES_A_LINE]
        halves = f"{line[:_HALF].hex(' ')}  {line[_HALF:].hex(' ')}"
        text = line.decode("latin-1").translate(_SHOWN)
        yield f"{address + start:016x}  {halves:<{_HEX_WIDTH}}  |{text}|"
