"""What the flags and the type of a ``struct page`` say, by the numbers that this kernel has.

References: Linux include/linux/page-flags.h (``enum pageflags``, ``enum pagetype``, ``PageType``,
``PAGE_MAPPING_ANON``), kernel/vmcore_info.c (``PAGE_BUDDY_MAPCOUNT_VALUE``). Types were bits that are
cleared until 6.11, and a number in the upper byte since (4ffca5a96678); slab pages had a flag until 6.9
(46df8e73a4a3).
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo
from qvmi.symbols.layout import Symbols, enumerator

__all__ = ["PageFlags", "Use"]

_FLAGS: Final = "pageflags"
_TYPES: Final = "pagetype"
_TYPE_SHIFT: Final = 24
_NO_SHIFT: Final = 0
_TYPE_MASK: Final = (1 << 32) - 1
_OLD_BUDDY, _OLD_OFFLINE, _OLD_TABLE = 0x80, 0x100, 0x200
"""Macros from 4.18 to 6.8, which no type information has."""
_OLDER_TABLE: Final = 0x400
"""While memory of control groups had a type too, until ``memcg_data`` took its place in 5.11."""


class Use(StrEnum):
    """This is what a page of RAM is used for."""

    FREE = "free"
    """It is in a block of the page allocator's."""
    RESERVED = "reserved"
    """It was taken while the kernel started, as for its image, and is not given back."""
    SLAB = "slab"
    """It holds small objects of the kernel's."""
    TABLE = "page table"
    ANONYMOUS = "anonymous"
    """It is of the programs' own memory."""
    FILE = "page cache"
    """It holds a part of a file, which may be one that is in memory alone."""
    OFFLINE = "offline"
    """It is not there for the guest, such as what a balloon has given back."""
    KERNEL = "kernel"
    """It is of any other use that is counted."""
    UNCOUNTED = "uncounted"
    """It is on a CPU's own list of free pages, or behind the first one of an allocation of several."""


_NUMBERED: Final = (
    ("PGTY_buddy", Use.FREE),
    ("PGTY_offline", Use.OFFLINE),
    ("PGTY_table", Use.TABLE),
    ("PGTY_slab", Use.SLAB),
)
_CLEARED: Final = (
    # the name in VMCOREINFO, that of the enumerator, the bit where there is neither
    ("PAGE_BUDDY_MAPCOUNT_VALUE", "PG_buddy", _OLD_BUDDY, Use.FREE),
    ("PAGE_OFFLINE_MAPCOUNT_VALUE", "PG_offline", _OLD_OFFLINE, Use.OFFLINE),
    ("", "PG_table", _OLD_TABLE, Use.TABLE),
    ("PAGE_SLAB_MAPCOUNT_VALUE", "PG_slab", 0, Use.SLAB),
)


class PageFlags:
    """This knows the flags and types of one kernel.

    Args:
        symbols: of the kernel.
        note: the kernel's note for crash dumps.

    Attributes:
        type_shift: by how much a ``page_type`` is shifted, as an unsigned number of 32 bits.
        types: uses by the shifted type; types that say nothing of the use are not in it.
        slab: the mask of the flag; 0 where slab pages have a type.

    Raises:
        SymbolsError: the profile lacks the flags.
    """

    def __init__(self, symbols: Symbols, note: VmcoreInfo) -> None:
        self.reserved = self._mask(symbols, "PG_reserved")
        self.head = self._mask(symbols, "PG_head")
        self.dirty = self._mask(symbols, "PG_dirty")
        self.writeback = self._mask(symbols, "PG_writeback")
        self.uptodate = self._mask(symbols, "PG_uptodate")
        slab = symbols.find_enumerator(_FLAGS, "PG_slab")
        self.slab = 0 if slab is None else 1 << slab
        numbered = symbols.find_enumerator(_TYPES, "PGTY_buddy") is not None
        self.type_shift = _TYPE_SHIFT if numbered else _NO_SHIFT
        self.types = dict(_numbered(symbols) if numbered else _cleared(symbols, note))

    @staticmethod
    def _mask(symbols: Symbols, name: str) -> int:
        return 1 << enumerator(symbols, _FLAGS, name)

    def use_by_type(self, page_type: int) -> Use | None:
        """This is what a page is used for by its ``page_type``; None where that does not say it."""
        return self.types.get(page_type >> self.type_shift)


def _numbered(symbols: Symbols) -> Iterator[tuple[int, Use]]:
    for name, use in _NUMBERED:
        value = symbols.find_enumerator(_TYPES, name)
        if value is not None:
            yield value, use


def _cleared(symbols: Symbols, note: VmcoreInfo) -> Iterator[tuple[int, Use]]:
    older = symbols.find_field("page", ("mem_cgroup",)) is not None
    for noted, name, its, use in _CLEARED:
        bit = _OLDER_TABLE if older and use is Use.TABLE else its
        value = note.number(noted)
        if value is None:
            found = symbols.find_enumerator(_TYPES, name)
            value = ~(bit if found is None else found)
        if ~value:
            yield value & _TYPE_MASK, use
