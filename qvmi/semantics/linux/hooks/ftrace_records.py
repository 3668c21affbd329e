"""Where the kernel can be traced: the places at the beginning of functions that ftrace patches.

References: Linux include/linux/ftrace.h (``struct dyn_ftrace``), kernel/trace/ftrace.c (``struct
ftrace_page``, ``ftrace_pages_start``, ``direct_functions``, ``struct ftrace_hash``); the records of
modules are in the same list.
"""

from array import array
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset, struct_size

__all__ = ["FtraceRecords"]

_POINTER: Final = Struct("<Q")
_MAX_PAGES: Final = 10_000
"""Blocks of records; each module has one or two."""
_MAX_RECORDS: Final = 1 << 20
"""Places in all; a kernel has some 45,000, all modules of a distribution five times that."""
_MAX_BITS: Final = 16
"""Of a hash's number of buckets; the kernel's own limit is 12."""
_MAX_DIRECT: Final = 1 << 16
_RECORDS: Final = "ftrace_pages_start"
_DIRECT: Final = "direct_functions"


class FtraceRecords:
    """This reads the places of one kernel; one that cannot be traced has none.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Attributes:
        gaps: what could not be read.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self._read_pointer = space.unpacker(_POINTER)
        self.gaps: list[Gap] = []

    def places(self) -> "array[int]":
        """These are the addresses of all places, in the order of the kernel's list."""
        found = array("Q")
        head = self._symbols.find(_RECORDS)
        if head is None:
            return found
        try:
            size = struct_size(self._symbols, "dyn_ftrace")
            ip = field_offset(self._symbols, "dyn_ftrace", "ip")
            read = compile_reader(
                self._space,
                (field_offset(self._symbols, "ftrace_page", "next"), "Q"),
                (field_offset(self._symbols, "ftrace_page", "records"), "Q"),
                (field_offset(self._symbols, "ftrace_page", "index"), "I"),
            )
            if size % _POINTER.size or ip % _POINTER.size:
                raise LayoutNotFound("dyn_ftrace", "ip")
            page = self._read_pointer(head)[0]
            for _ in range(_MAX_PAGES):
                if not page:
                    return found
                following, records, count = read(page)
                if len(found) + count > _MAX_RECORDS:
                    break
                words = array("Q", self._space.read(Va(records), count * size))
                found += words[ip // _POINTER.size :: size // _POINTER.size]
                page = following
            self.gaps.append(Gap(_RECORDS, Va(page), "the list does not end"))
        except (SymbolsError, MemoryFault) as error:
            self.gaps.append(Gap(_RECORDS, None, str(error)))
        return found

    def direct_calls(self) -> dict[int, int]:
        """These are the functions that places call directly by registration, by place."""
        found: dict[int, int] = {}
        pointer = self._symbols.find(_DIRECT)
        if pointer is None:
            return found
        try:
            self._read_direct(pointer, found)
        except (SymbolsError, MemoryFault) as error:
            self.gaps.append(Gap(_DIRECT, pointer, str(error)))
        return found

    def _read_direct(self, pointer: Va, found: dict[int, int]) -> None:
        table = self._read_pointer(pointer)[0]
        bits, buckets, count = compile_reader(
            self._space,
            (field_offset(self._symbols, "ftrace_hash", "size_bits"), "Q"),
            (field_offset(self._symbols, "ftrace_hash", "buckets"), "Q"),
            (field_offset(self._symbols, "ftrace_hash", "count"), "Q"),
        )(table)
        if not count:
            return
        link = field_offset(self._symbols, "ftrace_func_entry", "hlist")
        read = compile_reader(
            self._space,
            (link, "Q"),
            (field_offset(self._symbols, "ftrace_func_entry", "ip"), "Q"),
            (field_offset(self._symbols, "ftrace_func_entry", "direct"), "Q"),
        )
        if bits > _MAX_BITS:
            self.gaps.append(Gap(_DIRECT, Va(table), f"{1 << min(bits, 64)} buckets"))
            return
        for (first,) in _POINTER.iter_unpack(self._space.read(Va(buckets), 8 << bits)):
            node = first
            while node:
                if len(found) >= _MAX_DIRECT:
                    self.gaps.append(Gap(_DIRECT, Va(node), "the list does not end"))
                    return
                node, place, function = read(node - link)
                if place in found:
                    break
                found[place] = function
