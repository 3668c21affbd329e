"""Who traces functions of the kernel: ``struct ftrace_ops`` and the list of them.

References: Linux include/linux/ftrace.h, kernel/trace/ftrace.c (``ftrace_ops_list``,
``ftrace_list_end``, ``ftrace_update_trampoline``). The list is of pointers, not of ``list_head``.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["FtraceOps", "Tracer"]

_MAX_OPS: Final = 10_000
"""Each kprobe that traces may have one; tools have some hundred."""
_MAX_TRAMPOLINE: Final = 1 << 16
"""Bytes of one trampoline; x86-64's have some 300."""
_POINTER: Final = Struct("<Q")
_STRUCTURE: Final = "ftrace_ops_list"


@dataclass(frozen=True, slots=True)
class Tracer:
    """This is one that is called when a function of the kernel begins.

    Args:
        address: of its ``struct ftrace_ops``.
        place: where that is kept.
        function: what is called.
        trampoline: code made for it alone; 0 where it has none.
        trampoline_end: the first address behind it.
    """

    address: Va
    place: Va
    function: Va
    trampoline: Va
    trampoline_end: Va


class FtraceOps:
    """This lists those who trace functions.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._unknown = ""
        self._head = symbols.find(_STRUCTURE)
        self._end = symbols.find("ftrace_list_end")
        self._read_pointer = space.unpacker(_POINTER)
        try:
            self._function = field_offset(symbols, "ftrace_ops", "func")
            self._read = compile_reader(
                space,
                (field_offset(symbols, "ftrace_ops", "next"), "Q"),
                (self._function, "Q"),
                (field_offset(symbols, "ftrace_ops", "trampoline"), "Q"),
                (field_offset(symbols, "ftrace_ops", "trampoline_size"), "Q"),
            )
        except SymbolsError as error:
            self._unknown = str(error)

    def all(self) -> ListWalk[Tracer]:
        """These are all that are registered; none where the kernel cannot trace functions."""
        result: ListWalk[Tracer] = ListWalk()
        if self._head is None or self._end is None:
            return result
        if self._unknown:
            result.gaps.append(Gap(_STRUCTURE, self._head, self._unknown))
            return result
        at = int(self._head)
        try:
            at = self._read_pointer(at)[0]
            while at and at != self._end:
                if at in result.rows or len(result.rows) >= _MAX_OPS:
                    result.gaps.append(Gap(_STRUCTURE, Va(at), "the list does not end"))
                    break
                following, function, start, size = self._read(at)
                end = start + min(size, _MAX_TRAMPOLINE)
                place = Va(at + self._function)
                result.rows[at] = Tracer(Va(at), place, Va(function), Va(start), Va(end))
                at = following
        except MemoryFault as fault:
            result.gaps.append(Gap(_STRUCTURE, Va(at), str(fault)))
        return result
