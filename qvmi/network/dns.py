"""The names that answers of DNS tell addresses of.

References: RFC 1035 (4.1, 4.1.4), RFC 3596.
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

__all__ = ["PORT", "names_in"]

PORT: Final = 53
_HEADER: Final = struct.Struct(">HHHHHH")
_RECORD: Final = struct.Struct(">HHIH")
_RESPONSE: Final = 0x8000
_A: Final = 1
_AAAA: Final = 28
_IN: Final = 1
_MAX_RECORDS: Final = 256
"""Answers of a message that are looked at; 64 KiB have room for more, which nobody sends in good health."""
_MAX_LABELS: Final = 128
"""Labels and pointers of a name: it has 255 bytes at most."""
_MAX_NAME: Final = 255
"""Bytes of a name, by RFC 1035 (2.3.4): by pointers a few bytes make a long one, and names are kept."""
_POINTER: Final = 0xC0


class _Malformed(Exception):
    """A message that is no message of DNS."""


def names_in(message: bytes) -> list[tuple[str, str]]:
    """These are the addresses that an answer tells, each with the name that was asked for.

    That is the name in the question, whatever other names led to the address.

    Returns:
        Pairs of address and name; none where it is no answer, or is malformed.
    """
    try:
        return list(_answers(message))
    except (_Malformed, struct.error, IndexError):
        return []


def _answers(message: bytes) -> Iterator[tuple[str, str]]:
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or questions != 1:
        return
    name, at = _name(message, _HEADER.size)
    at += 4
    for _ in range(min(answers, _MAX_RECORDS)):
        _, at = _name(message, at)
        kind, group, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        data = message[at : at + length]
        at += length
        if group == _IN and kind == _A and len(data) == 4:  # noqa: PLR2004 - bytes
            yield str(IPv4Address(data)), name
        elif group == _IN and kind == _AAAA and len(data) == 16:  # noqa: PLR2004 - bytes
            yield str(IPv6Address(data)), name


def _name(message: bytes, at: int) -> tuple[str, int]:
    """This is a name, and where what follows it begins; pointers in it may lead in circles."""
    labels: list[str] = []
    end, room = -1, _MAX_NAME
    for _ in range(_MAX_LABELS):
        length = message[at]
        if length & _POINTER == _POINTER:
            end = at + 2 if end < 0 else end
            at = (length & ~_POINTER) << 8 | message[at + 1]
        elif length & _POINTER or (length and length + 1 >= room):
            break
        elif length:
            label = message[at + 1 : at + 1 + length]
            labels.append(label.decode("ascii", "backslashreplace"))
            at += 1 + length
            room -= 1 + length
        else:
            return ".".join(labels), (at + 1 if end < 0 else end)
    raise _Malformed
