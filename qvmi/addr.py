"""Guest addresses, physical and virtual, as types that cannot be mixed up."""

from typing import Final, NamedTuple, NewType

__all__ = ["PAGE_SIZE", "Pa", "PaRange", "Va", "canonical"]

Pa = NewType("Pa", int)
"""A guest physical address, in bytes."""

Va = NewType("Va", int)
"""A guest virtual address, in bytes, canonical: its unused upper bits are copies of the top used one."""

PAGE_SIZE: Final = 4096
"""The smallest page of x86-64 and of the aarch64 guests that qvmi supports, in bytes."""


class PaRange(NamedTuple):
    """This is the half-open range of guest physical addresses [start, end)."""

    start: Pa
    end: Pa

    @property
    def size(self) -> int:
        """This is the range's length in bytes."""
        return self.end - self.start


def canonical(va: Va, va_bits: int) -> bool:
    """This tells whether it is a 64-bit address whose bits va_bits-1..63 are all alike."""
    upper = va >> (va_bits - 1)
    return upper == 0 or upper == (1 << (65 - va_bits)) - 1
