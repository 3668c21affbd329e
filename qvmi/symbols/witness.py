"""The bytes of the guest that an answer rests on, so that it is believed only where they are the same.

A profile is shared by all guests that run one kernel build. A hostile one may have altered its own
tables before it was looked at; what was read from these must not be believed of the others.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Self

import msgspec

from qvmi.addr import Va
from qvmi.errors import MemoryFault

__all__ = ["Piece", "Witness"]

Piece = tuple[Va, bytes]
"""Bytes of the kernel's tables, and the address that they were copied from."""


class Witness(msgspec.Struct, frozen=True, array_like=True):
    """This remembers pieces of memory by their hash.

    Args:
        ranges: address and size in bytes of each piece.
        sha256: of all of them, one behind the other, hexadecimal.
    """

    ranges: tuple[tuple[int, int], ...]
    sha256: str

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Self:
        """This hashes the very copies that were decoded: memory may be another a moment later."""
        kept = tuple(pieces)
        ranges = tuple((int(va), len(data)) for va, data in kept)
        return cls(ranges, hashlib.sha256(b"".join(data for _, data in kept)).hexdigest())

    def holds(self, read: Callable[[Va, int], bytes]) -> bool:
        """This tells whether memory holds the same bytes now."""
        try:
            found = b"".join(read(Va(va), size) for va, size in self.ranges)
        except MemoryFault:
            return False
        return hashlib.sha256(found).hexdigest() == self.sha256

    def moved(self, distance: int) -> "Witness":
        """This is the witness for a kernel whose image lies elsewhere."""
        return Witness(tuple((va + distance, size) for va, size in self.ranges), self.sha256)
