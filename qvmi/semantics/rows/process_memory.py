"""Rows about the memory of a process."""

from enum import StrEnum

import msgspec

from qvmi.addr import Va

__all__ = ["Held", "MemoryPiece"]


class Held(StrEnum):
    """This is where the content of a piece of a process's memory is."""

    MEMORY = "memory"
    """The process's page tables map it."""
    CACHE = "page cache"
    """It is in the page cache, and would be mapped from there when it is touched."""
    ZEROS = "zeros"
    """It was never touched, and is zeros when it is."""
    NOWHERE = "not loaded"
    """It is in a file that would have to be read, or behind its end."""
    MISSING = "missing"
    """It is swapped out, or cannot be read."""


class MemoryPiece(msgspec.Struct, frozen=True, gc=False):
    """This is one run of a process's memory whose content is in one kind of place.

    Args:
        start: its first address.
        end: the first address behind it.
        permissions: of its mapping, as ``/proc/PID/maps`` shows them.
        held: where its content is.
        page: of the page cache, the address of the ``struct page`` of the folio it is in; else 0.
        offset: of the page cache, of the first byte in that folio; else 0.
        reason: why it is missing.
    """

    start: Va
    end: Va
    permissions: str
    held: Held
    page: Va = Va(0)
    offset: int = 0
    reason: str = ""
