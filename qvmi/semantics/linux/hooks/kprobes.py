"""Probes in the midst of the kernel's code: ``struct kprobe`` and the table of them.

References: Linux include/linux/kprobes.h, kernel/kprobes.c (``kprobe_table``, ``KPROBE_TABLE_SIZE``).
"""

from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Kprobe", "Kprobes"]

_BUCKETS: Final = 64
"""``KPROBE_TABLE_SIZE``: 1 << KPROBE_HASH_BITS."""
_MAX_PROBES: Final = 1 << 16
_HEADS: Final = Struct(f"<{_BUCKETS}Q")
_TABLE: Final = "kprobe_table"


class Kprobe(NamedTuple):
    """This is one probe.

    Args:
        address: of its ``struct kprobe``.
        place: the instruction that it is at.
        before: what is called before that instruction; 0 for nothing.
        after: what is called after it; 0 for nothing.
    """

    address: int
    place: int
    before: int
    after: int


class Kprobes:
    """This lists the probes of one kernel; one without probes has none.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._unknown = ""
        self._table = symbols.find(_TABLE)
        self._read_heads = space.unpacker(_HEADS)
        try:
            self._link = field_offset(symbols, "kprobe", "hlist")
            self.before_offset = field_offset(symbols, "kprobe", "pre_handler")
            self.after_offset = field_offset(symbols, "kprobe", "post_handler")
            self._read = compile_reader(
                space,
                (self._link, "Q"),
                (field_offset(symbols, "kprobe", "addr"), "Q"),
                (self.before_offset, "Q"),
                (self.after_offset, "Q"),
            )
        except SymbolsError as error:
            self._unknown = str(error)

    def all(self) -> ListWalk[Kprobe]:
        """These are all probes that are registered."""
        result: ListWalk[Kprobe] = ListWalk()
        if self._table is None:
            return result
        if self._unknown:
            result.gaps.append(Gap(_TABLE, self._table, self._unknown))
            return result
        try:
            heads = self._read_heads(self._table)
        except MemoryFault as fault:
            result.gaps.append(Gap(_TABLE, self._table, str(fault)))
            return result
        for head in heads:
            self._follow(head, result)
        return result

    def _follow(self, node: int, result: ListWalk[Kprobe]) -> None:
        while node:
            address = node - self._link
            if address in result.rows or len(result.rows) >= _MAX_PROBES:
                result.gaps.append(Gap(_TABLE, Va(address), "the list does not end"))
                return
            try:
                node, place, before, after = self._read(address)
            except MemoryFault as fault:
                result.gaps.append(Gap(_TABLE, Va(address), str(fault)))
                return
            result.rows[address] = Kprobe(address, place, before, after)
