"""Page tables written entry by entry.

References: Intel SDM volume 3A, tables 4-14 to 4-20: bit 0 present, bit 1 read/write, bit 2
user/supervisor, bit 7 page size, bits 51:12 address, bit 63 execute-disable.
"""

from tests.synthetic.ram import Ram

__all__ = ["NO_EXECUTE", "PAGE", "PRESENT", "PageTables"]

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
PAGE = 4096
_INDEX_BITS = 9
_ADDRESS = 0x000F_FFFF_FFFF_F000
_SHIFT_OF_SIZE = {1 << 12: 12, 1 << 21: 21, 1 << 30: 30}


class PageTables:
    """This maps pages; tables are taken from a run of free pages.

    Args:
        ram: where the tables are written.
        root: of the top-level table.
        free: first page for further tables.
        levels: 4 or 5.
    """

    def __init__(self, ram: Ram, root: int, *, free: int, levels: int = 4) -> None:
        self.ram = ram
        self.root = root
        self.free = free
        self.top_shift = 12 + _INDEX_BITS * (levels - 1)

    def map(
        self,
        va: int,
        pa: int,
        size: int = PAGE,
        *,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
    ) -> int:
        """This maps one page of 4 KiB, 2 MiB or 1 GiB, and returns where its entry lies."""
        leaf = _SHIFT_OF_SIZE[size]
        address = self.entry_address(va, leaf)
        rights = (WRITABLE if writable else 0) | (USER if user else 0)
        rights |= 0 if executable else NO_EXECUTE
        self.ram.write_u64(address, pa | rights | PRESENT | (LARGE if leaf > 12 else 0))
        return address

    def map_run(self, va: int, pa: int, size: int, **rights: bool) -> None:
        """This maps a run with pages of 4 KiB."""
        for offset in range(0, size, PAGE):
            self.map(va + offset, pa + offset, **rights)

    def entry_address(self, va: int, leaf_shift: int = 12) -> int:
        """This is where the entry of one level lies; tables above it are made where missing."""
        table = self.root
        for shift in range(self.top_shift, leaf_shift, -_INDEX_BITS):
            address = table + 8 * (va >> shift & 0x1FF)
            if not self.ram.read_u64(address) & PRESENT:
                self.ram.write_u64(address, self.free | PRESENT | WRITABLE | USER)
                self.free += PAGE
            table = self.ram.read_u64(address) & _ADDRESS
        return table + 8 * (va >> leaf_shift & 0x1FF)
