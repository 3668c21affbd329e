"""How a kernel of x86-64 finds the caller of each of its instructions: its ORC tables.

References: Linux arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c (``unwind_next_frame``);
``type`` has three bits and other values since 6.4, by fb799447ae29. The registers of 7.x have other numbers,
which were inferred from the rows of a 7.2 kernel: each occurs with the offsets that its register has too.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

from qvmi.addr import Va
from qvmi.errors import CorruptTable
from qvmi.symbols.kallsyms import ReadVirtual
from qvmi.symbols.layout import Symbols

__all__ = [
    "MAX_ORCS",
    "ORC_ADDRESS_SIZE",
    "ORC_ROW_SIZE",
    "OrcBase",
    "OrcKind",
    "OrcLayout",
    "OrcRow",
    "OrcTable",
    "find_orc",
    "read_numbering",
    "read_orc",
]

MAX_ORCS: Final = 1_000_000
"""Of kernel and modules together; a distribution's kernel has 400,000."""

_ENTRY: Final = Struct("<hhH")
ORC_ADDRESS_SIZE: Final = 4
"""Bytes; a signed distance."""
ORC_ROW_SIZE: Final = _ENTRY.size
"""Bytes."""
_SAMPLE: Final = 4096
"""Rows of a kernel that tell how it numbers registers: most of these count from the stack pointer."""
_ADDRESS_MASK: Final = (1 << 64) - 1
_FLAGS_AT: Final = 32  # bits: behind the two offsets
_OLD_TYPE_BITS: Final = 2


class OrcKind(IntEnum):
    """This is what lies at the place that a row tells of."""

    NOTHING = 0
    """Nobody knows."""
    CALL = 1
    """The end of the caller's frame, below it the return address."""
    REGISTERS = 2
    """All registers of what was interrupted (``pt_regs``)."""
    INTERRUPT_FRAME = 3
    """Only those that the processor saves itself."""
    END = 4
    """Nothing: here the stack ends."""


class OrcBase(IntEnum):
    """This is what a row counts from."""

    UNDEFINED = 0
    PREVIOUS_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9


Numbering = Mapping[int, OrcBase]
"""What a kernel means by each number of a register."""

_OLD_NUMBERING: Final[Numbering] = {base.value: base for base in OrcBase}
_NEW_NUMBERING: Final[Numbering] = {
    0: OrcBase.UNDEFINED,
    2: OrcBase.DI,
    3: OrcBase.SP,
    4: OrcBase.BP,
    6: OrcBase.R10,
    7: OrcBase.R13,
    8: OrcBase.PREVIOUS_SP,
    9: OrcBase.SP_INDIRECT,
    10: OrcBase.BP_INDIRECT,
}
_NUMBERINGS: Final = (_OLD_NUMBERING, _NEW_NUMBERING)


_UNKNOWN: Final = OrcBase.DX  # RBP is never saved beside it
_BASES: Final = frozenset(OrcBase) - {OrcBase.UNDEFINED, OrcBase.PREVIOUS_SP}
_BP_BASES: Final = frozenset({OrcBase.UNDEFINED, OrcBase.PREVIOUS_SP, OrcBase.BP})

_STACKS: Final = (OrcKind.CALL, OrcKind.REGISTERS, OrcKind.INTERRUPT_FRAME)
# One for each number that two or three bits can be.
_OLD_KINDS: Final = (*_STACKS, OrcKind.NOTHING)
_NEW_KINDS: Final = (OrcKind.NOTHING, OrcKind.END, *_STACKS, *[OrcKind.NOTHING] * 3)


class OrcRow(NamedTuple):
    """This is how the caller is found from an instruction on, up to that of the next row.

    Args:
        kind: what lies there.
        base: what ``sp_offset`` counts from.
        sp_offset: to the place, in bytes.
        bp_base: what ``bp_offset`` counts from; UNDEFINED where the caller's RBP is still in RBP.
        bp_offset: to where the caller's RBP was saved, in bytes.
    """

    kind: OrcKind
    base: OrcBase
    sp_offset: int
    bp_base: OrcBase
    bp_offset: int


Entry = tuple[int, int, int]
"""Two offsets, and the bits of the rest."""

_NOTHING: Final = OrcRow(OrcKind.NOTHING, OrcBase.UNDEFINED, 0, OrcBase.UNDEFINED, 0)
_END: Final = OrcRow(OrcKind.END, OrcBase.UNDEFINED, 0, OrcBase.UNDEFINED, 0)


@dataclass(frozen=True, slots=True)
class OrcTable:
    """This is where one table lies.

    Args:
        addresses: of its addresses, each relative to itself.
        rows: of its rows.
        count: of both.
    """

    addresses: Va
    rows: Va
    count: int


@dataclass(frozen=True, slots=True)
class OrcLayout:
    """This is where the fields of a row are, in bits behind its two offsets.

    Args:
        base: of ``sp_reg``, and ``bp_base`` of ``bp_reg``; four bits each.
        kind: of ``type``.
        kinds: what each of its values means.
        end: of ``end``, which a value of ``type`` says itself since 6.4; None there.
    """

    base: int
    bp_base: int
    kind: int
    kinds: tuple[OrcKind, ...]
    end: int | None = None

    @classmethod
    def of(cls, symbols: Symbols) -> Self | None:
        """This is the layout that a kernel has, None where it has none, or one of another form."""
        found = [symbols.find_field("orc_entry", (name,)) for name in ("sp_reg", "bp_reg", "type")]
        fields = [one for one in found if one is not None]
        places = [one.offset * 8 + one.bit_offset - _FLAGS_AT for one in fields]
        if len(fields) != len(found) or symbols.size_of("orc_entry") != _ENTRY.size:
            return None
        if not all(0 <= place <= _ENTRY.size * 8 - _FLAGS_AT - 2 for place in places):
            return None
        kinds = _OLD_KINDS if fields[2].bit_size == _OLD_TYPE_BITS else _NEW_KINDS
        base, bp_base, kind = places
        end = symbols.find_field("orc_entry", ("end",))
        end_at = None if end is None else end.offset * 8 + end.bit_offset - _FLAGS_AT
        if end_at is not None and not 0 <= end_at < _ENTRY.size * 8 - _FLAGS_AT:
            return None
        return cls(base, bp_base, kind, kinds, end_at)

    def numbering(self, entries: Sequence[Entry]) -> Numbering | None:
        """This is what the numbers of registers mean; None where no known meaning fits.

        Most rows of every kernel count from the stack pointer.
        """
        numbers = Counter(flags >> self.base & 0xF for _, _, flags in entries)
        del numbers[0]
        most = max(numbers, key=numbers.__getitem__, default=0)
        fitting = (one for one in _NUMBERINGS if one.get(most) is OrcBase.SP)
        return next(fitting, None)

    def row(self, entry: Entry, numbering: Numbering) -> OrcRow:
        """This is what one entry says; what makes no sense says nothing."""
        sp_offset, bp_offset, flags = entry
        base = numbering.get(flags >> self.base & 0xF, OrcBase.UNDEFINED)
        bp_base = numbering.get(flags >> self.bp_base & 0xF, _UNKNOWN)
        kind = self.kinds[flags >> self.kind & len(self.kinds) - 1]
        is_old_end = self.end is not None and base is OrcBase.UNDEFINED and flags >> self.end & 1
        if kind is OrcKind.END or is_old_end:
            return _END
        if kind is OrcKind.NOTHING or base not in _BASES or bp_base not in _BP_BASES:
            return _NOTHING
        return OrcRow(kind, base, sp_offset, bp_base, bp_offset)


def read_orc(
    read: ReadVirtual, layout: OrcLayout, tables: Iterable[OrcTable]
) -> Iterator[tuple[Va, OrcRow]]:
    """This iterates all rows, by rising address within each table.

    Args:
        read: reads the kernel's virtual memory.
        layout: of a row.
        tables: the kernel's own comes first: it tells how registers are numbered.

    Raises:
        CorruptTable: registers are numbered in no known way.
        MemoryFault: a table cannot be read.
    """
    known: dict[Entry, OrcRow] = {}
    numbering: Numbering | None = None
    for table in tables:
        if not 0 < table.count <= MAX_ORCS:
            continue
        distances = array("i", read(table.addresses, ORC_ADDRESS_SIZE * table.count))
        entries = list(_ENTRY.iter_unpack(read(table.rows, _ENTRY.size * table.count)))
        numbering = numbering or layout.numbering(entries)
        if numbering is None:
            raise CorruptTable("orc_unwind", "its registers are numbered in no known way")
        found = [
            (table.addresses + ORC_ADDRESS_SIZE * at + distance & _ADDRESS_MASK, entry)
            for at, (distance, entry) in enumerate(zip(distances, entries, strict=True))
        ]
        found.sort(key=lambda one: one[0])
        for address, entry in found:
            if entry not in known:
                known[entry] = layout.row(entry, numbering)
            yield Va(address), known[entry]


def read_numbering(read: ReadVirtual, layout: OrcLayout, table: OrcTable) -> Numbering | None:
    """This is how a kernel numbers registers, told by a part of its own table; None as above.

    Raises:
        MemoryFault: the table cannot be read.
    """
    count = min(max(table.count, 0), _SAMPLE)
    return layout.numbering(list(_ENTRY.iter_unpack(read(table.rows, _ENTRY.size * count))))


def find_orc(read: ReadVirtual, table: OrcTable, va: Va) -> Entry | None:
    """This is the last entry of a sorted table up to an address, None where it begins behind that.

    Raises:
        MemoryFault: the table cannot be read.
    """
    low, high = 0, min(max(table.count, 0), MAX_ORCS)
    while low < high:
        middle = (low + high) // 2
        at = table.addresses + ORC_ADDRESS_SIZE * middle
        distance = int.from_bytes(read(Va(at), ORC_ADDRESS_SIZE), "little", signed=True)
        if at + distance & _ADDRESS_MASK <= va:
            low = middle + 1
        else:
            high = middle
    if not low:
        return None
    found: Entry = _ENTRY.unpack(read(Va(table.rows + _ENTRY.size * (low - 1)), _ENTRY.size))
    return found
