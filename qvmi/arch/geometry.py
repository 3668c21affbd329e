"""Ways of translating addresses, as data: the levels of page tables, and what the bits of their entries mean.

References: Intel SDM volume 3A, chapter 4 (tables 4-14 to 4-20); AMD64 Architecture Programmer's Manual
volume 2, section 5.3; Arm Architecture Reference Manual (DDI 0487), D8.2 (translation process), D8.3
(VMSAv8-64 descriptors: table, block and page, with FEAT_LPA2), D8.4 (permissions, DBM).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from qvmi.arch.page_table import ENTRY_SIZE, EntryForm

__all__ = [
    "AARCH64_VA_BITS",
    "X86_64_4_LEVEL",
    "X86_64_5_LEVEL",
    "Geometry",
    "Half",
    "Level",
    "Permissions",
    "aarch64_geometry",
]

_ADDRESS_BITS: Final = 64
_PAGE_BITS: Final = 12
_INDEX_BITS: Final = 9

# What an entry denies; entries of one walk together deny what any of them does.
_NO_WRITE: Final = 1
_NO_USER: Final = 2
_NO_EXECUTE: Final = 4
_NO_USER_EXECUTE: Final = 8


@dataclass(frozen=True, slots=True)
class Permissions:
    """These are the rights that all entries of a walk together leave.

    Args:
        writable: whether the page can be written.
        user: whether user mode can access it.
        executable: whether those whose page it is, user mode or the kernel, can execute it.
    """

    writable: bool
    user: bool
    executable: bool

    @classmethod
    def but(cls, denied: int) -> "Permissions":
        """These are the rights that are left of all."""
        execute = _NO_EXECUTE if denied & _NO_USER else _NO_USER_EXECUTE
        return cls(
            writable=not denied & _NO_WRITE,
            user=not denied & _NO_USER,
            executable=not denied & execute,
        )


@dataclass(frozen=True, slots=True)
class Level:
    """This is one level of paging structures.

    Args:
        name: of its entries, in the manual's own word.
        shift_bits: position of the address bits that index it; its leaf maps 2**shift bytes.
        leaf_mask: the bits that tell whether an entry maps a page instead of a table.
        leaf: what they are then; a value outside of the mask where no entry does, 0 of an empty
            mask where every one does.
        present: the bits that are all set in an entry that means anything.
        index_bits: width of the index; only a top level may have a narrower one.
    """

    name: str
    shift_bits: int
    leaf_mask: int = 0
    leaf: int = 1
    present: int = 1
    index_bits: int = _INDEX_BITS

    @property
    def table_size(self) -> int:
        """This is the size of one table in bytes."""
        return ENTRY_SIZE << self.index_bits

    @property
    def always_leaf(self) -> bool:
        """This tells whether every entry maps a page, as those of the last level do."""
        return not self.leaf_mask and not self.leaf


class Half(StrEnum):
    """This is which of the two ends of the address space a page-table root translates."""

    BOTH = "both"
    LOWER = "lower"
    UPPER = "upper"


Denied = Callable[[int, bool], int]
"""Tells what an entry denies, as a sum of flags, from its value and whether it maps a page."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """This is one way of translating addresses, from the top level down.

    Args:
        name: such as ``5-level``.
        va_bits: width of a virtual address.
        levels: the structures, top first.
        denied: what an entry denies.
        rights: the bits of a leaf that this depends on.
        half: what of the address space it translates.
        root_mask: the bits of a root that hold the top table's physical address.
        address_mask: the bits of an entry that hold a physical address where they are in it.
        high_mask: the bits of an entry that hold higher ones elsewhere.
        high_shift_bits: how far those are moved up.
        top_bits: width of an address within the half that it lies in; made from the others.
        tops: what the bits above those may be.
        forms: how each level's entries are recognised as mapping one run.
    """

    name: str
    va_bits: int
    levels: tuple[Level, ...]
    denied: Denied = field(repr=False)
    rights: int
    half: Half = Half.BOTH
    root_mask: int = 0x000F_FFFF_FFFF_F000
    address_mask: int = 0x000F_FFFF_FFFF_F000
    high_mask: int = 0
    high_shift_bits: int = 0
    top_bits: int = field(init=False, repr=False, compare=False)
    tops: tuple[int, ...] = field(init=False, repr=False, compare=False)
    forms: tuple[EntryForm, ...] = field(init=False, repr=False, compare=False)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """These are the ranges [start, end) of addresses that can be translated, by address."""
        return tuple((top << self.top_bits, top + 1 << self.top_bits) for top in self.tops)

    def of_user(self) -> "Geometry":
        """This is how user mode's addresses are translated where the kernel's are like this.

        Linux gives both halves of aarch64 the same width.
        """
        return replace(self, half=Half.LOWER) if self.half is Half.UPPER else self

    def target(self, entry: int) -> int:
        """This is the physical address in an entry, that of a table or a page."""
        return entry & self.address_mask | (entry & self.high_mask) << self.high_shift_bits

    def permissions(self, level_name: str, entry: int) -> Permissions | None:
        """These are the rights that one entry leaves; None where it is not present."""
        level = next(level for level in self.levels if level.name == level_name)
        if entry & level.present != level.present:
            return None
        return Permissions.but(self.denied(entry, entry & level.leaf_mask == level.leaf))

    def __post_init__(self) -> None:
        # A root for both halves takes the highest bit of an address to choose between them.
        top_bits = self.va_bits - 1 if self.half is Half.BOTH else self.va_bits
        highest = (1 << _ADDRESS_BITS - top_bits) - 1
        tops = {Half.BOTH: (0, highest), Half.LOWER: (0,), Half.UPPER: (highest,)}[self.half]
        object.__setattr__(self, "top_bits", top_bits)
        object.__setattr__(self, "tops", tops)
        object.__setattr__(self, "forms", tuple(map(self._form, self.levels)))

    def _form(self, level: Level) -> EntryForm:
        present, size = level.present, 1 << level.shift_bits
        mask, leaf = (present, present) if level.always_leaf else (level.leaf_mask, level.leaf)
        decisive = present | mask | self.rights | self.high_mask | self.address_mask & -size
        return EntryForm.of(
            present=present, leaf_mask=mask, leaf=leaf, decisive=decisive, page_size=size
        )


_WRITABLE: Final = 1 << 1
_USER: Final = 1 << 2
_LARGE_PAGE: Final = 1 << 7
_EXECUTE_DISABLE_BIT: Final = 63


def _denied_by_x86(entry: int, _: bool) -> int:  # noqa: FBT001 - as `Denied` has it
    """Tables and pages have the same bits: two that grant, one that denies."""
    never = _NO_EXECUTE | _NO_USER_EXECUTE
    return ~entry >> 1 & (_NO_WRITE | _NO_USER) | (entry >> _EXECUTE_DISABLE_BIT & 1) * never


def _x86(name: str, va_bits: int, *levels: Level) -> Geometry:
    rights = _WRITABLE | _USER | 1 << _EXECUTE_DISABLE_BIT
    return Geometry(name, va_bits, levels, _denied_by_x86, rights)


_LOWER_LEVELS: Final = (
    Level("PML4E", 39),
    Level("PDPTE", 30, _LARGE_PAGE, _LARGE_PAGE),
    Level("PDE", 21, _LARGE_PAGE, _LARGE_PAGE),
    Level("PTE", 12, leaf=0),
)

X86_64_4_LEVEL: Final = _x86("4-level", 48, *_LOWER_LEVELS)
X86_64_5_LEVEL: Final = _x86("5-level", 57, Level("PML5E", 48), *_LOWER_LEVELS)


_VALID: Final = 1 << 0
_TABLE_OR_PAGE: Final = 1 << 1
_EL0_ACCESS: Final = 1 << 6
_READ_ONLY: Final = 1 << 7
_DIRTY_BIT_MODIFIER: Final = 1 << 51
_PRIVILEGED_EXECUTE_NEVER: Final = 1 << 53
_USER_EXECUTE_NEVER: Final = 1 << 54
_TABLE_RIGHTS_SHIFT: Final = 59
"""PXNTable, UXNTable, and APTable, which denies EL0's access and writing."""

AARCH64_VA_BITS: Final = range(25, 52 + 1)
"""Widths of addresses that there may be."""
_VA_BITS_OF_LPA2: Final = 49
"""Wider addresses than 48 bits in pages of 4 KiB need FEAT_LPA2's form of entries."""


def _denied_by_aarch64(entry: int, leaf: bool) -> int:  # noqa: FBT001 - as `Denied` has it
    if not leaf:
        flags = entry >> _TABLE_RIGHTS_SHIFT
        return (
            (_NO_EXECUTE if flags & 1 else 0)
            | (_NO_USER_EXECUTE if flags & 2 else 0)
            | (_NO_USER if flags & 4 else 0)
            | (_NO_WRITE if flags & 8 else 0)
        )
    # A writable page that is clean is read-only until the processor, or the kernel, notes a write.
    written_never = entry & (_READ_ONLY | _DIRTY_BIT_MODIFIER) == _READ_ONLY
    return (
        (_NO_WRITE if written_never else 0)
        | (0 if entry & _EL0_ACCESS else _NO_USER)
        | (_NO_EXECUTE if entry & _PRIVILEGED_EXECUTE_NEVER else 0)
        | (_NO_USER_EXECUTE if entry & _USER_EXECUTE_NEVER else 0)
    )


_AARCH64_RIGHTS: Final = (
    _EL0_ACCESS | _READ_ONLY | _DIRTY_BIT_MODIFIER | _PRIVILEGED_EXECUTE_NEVER | _USER_EXECUTE_NEVER
)
_BOTH_BITS: Final = _VALID | _TABLE_OR_PAGE


def aarch64_geometry(va_bits: int, half: Half, *, lpa2: bool = False) -> Geometry:
    """This is how aarch64 translates one half of the address space, in pages of 4 KiB.

    Args:
        va_bits: width of an address, 64 less TCR_EL1.T0SZ or T1SZ.
        half: LOWER is what TTBR0_EL1 translates, user mode's; UPPER is TTBR1_EL1's, the kernel's.
        lpa2: whether entries have the form of FEAT_LPA2 (TCR_EL1.DS); wider addresses than 48
            bits always have.

    Raises:
        ValueError: there is no such width.
    """
    if va_bits not in AARCH64_VA_BITS:
        least, most = AARCH64_VA_BITS[0], AARCH64_VA_BITS[-1]
        raise ValueError(f"{va_bits} bits of addresses: there are {least} to {most}")
    lpa2 = lpa2 or va_bits >= _VA_BITS_OF_LPA2
    levels = []
    for number in range(-1, 4):
        shift = _PAGE_BITS + (3 - number) * _INDEX_BITS
        if shift < va_bits:
            levels.append(
                _aarch64_level(number, shift, min(_INDEX_BITS, va_bits - shift), lpa2=lpa2)
            )
    more = {"address_mask": 0x0003_FFFF_FFFF_F000, "high_mask": 3 << 8, "high_shift_bits": 42}
    return Geometry(
        f"{va_bits}-bit, {len(levels)} levels{', LPA2' if lpa2 else ''}",
        va_bits,
        tuple(levels),
        _denied_by_aarch64,
        _AARCH64_RIGHTS,
        half=half,
        # A top table that is smaller than a page need not begin one.
        root_mask=0x000F_FFFF_FFFF_FFC0,
        **more if lpa2 else {"address_mask": 0x0000_FFFF_FFFF_F000},
    )


def _aarch64_level(number: int, shift_bits: int, index_bits: int, *, lpa2: bool) -> Level:
    """Blocks are of level 1 and 2, with FEAT_LPA2 of level 0 too; pages are of level 3."""
    name = f"level {number} descriptor"
    if number >= (0 if lpa2 else 1) and shift_bits > _PAGE_BITS:
        return Level(name, shift_bits, _TABLE_OR_PAGE, 0, _VALID, index_bits)
    leaf = 1 if shift_bits > _PAGE_BITS else 0
    return Level(name, shift_bits, 0, leaf, _BOTH_BITS, index_bits)
