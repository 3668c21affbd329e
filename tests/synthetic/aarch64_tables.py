"""aarch64 page tables of 4 KiB pages, written entry by entry.

References: Arm Architecture Reference Manual (DDI 0487), D8.3.1 and D8.3.2: bits 1:0 are 0b11 for a table
or a page and 0b01 for a block; in a leaf AP[1] (EL0) is bit 6, AP[2] (read-only) bit 7, AF bit 10, DBM
bit 51, PXN bit 53, UXN bit 54; in a table PXNTable is bit 59, UXNTable bit 60, APTable bits 62:61. With
52 bits (FEAT_LPA2) bits 9:8 hold bits 51:50 of the address.
"""

from tests.synthetic.ram import Ram

__all__ = ["BLOCK", "DBM", "EL0", "PXN", "READ_ONLY", "TABLE", "UXN", "Aarch64Tables"]

BLOCK, TABLE = 0b01, 0b11
EL0 = 1 << 6
READ_ONLY = 1 << 7
ACCESSED = 1 << 10
DBM = 1 << 51
PXN = 1 << 53
UXN = 1 << 54
PAGE = 4096
_ADDRESS = {48: 0x0000_FFFF_FFFF_F000, 52: 0x0003_FFFF_FFFF_F000}


class Aarch64Tables:
    """This maps pages of one half; tables are taken from a run of free pages.

    Args:
        ram: where the tables are written.
        root: of the top-level table.
        free: first page for further tables.
        va_bits: 48, with four levels, or 52, with five.
    """

    def __init__(self, ram: Ram, root: int, *, free: int, va_bits: int) -> None:
        self.ram = ram
        self.root = root
        self.free = free
        self.va_bits = va_bits

    def map(self, va: int, pa: int, flags: int = 0, *, shift: int = 12) -> int:
        """This maps one page or block of 2**shift bytes, and returns where its entry lies."""
        address = self.entry_address(va, shift)
        kind = TABLE if shift == 12 else BLOCK
        self.ram.write_u64(address, self.entry(pa) | kind | ACCESSED | flags)
        return address

    def map_run(self, va: int, pa: int, size: int, flags: int = 0) -> None:
        """This maps a run with pages of 4 KiB."""
        for offset in range(0, size, PAGE):
            self.map(va + offset, pa + offset, flags)

    def entry_address(self, va: int, leaf_shift: int = 12, table_flags: int = 0) -> int:
        """This is where the entry of one level lies; tables above it are made where missing."""
        table, va = self.root, va & (1 << self.va_bits) - 1
        for shift in range(39 if self.va_bits == 48 else 48, leaf_shift, -9):
            address = table + 8 * (va >> shift & 0x1FF)
            if not self.ram.read_u64(address):
                self.ram.write_u64(address, self.entry(self.free) | TABLE | table_flags)
                self.free += PAGE
            table = self.ram.read_u64(address) & _ADDRESS[self.va_bits]
        return table + 8 * (va >> leaf_shift & 0x1FF)

    def entry(self, pa: int) -> int:
        """This is the address part of an entry."""
        if self.va_bits == 48:
            return pa
        return pa & _ADDRESS[52] | pa >> 50 << 8
