"""Functions that are called at tracepoints, of the kernel and of its modules.

References: Linux include/linux/tracepoint-defs.h (``struct tracepoint``, ``struct tracepoint_func``),
kernel/tracepoint.c; the tables of tracepoints hold distances (``HAVE_ARCH_PREL32_RELOCATIONS``).
"""

from collections.abc import Iterable
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Module
from qvmi.semantics.linux.hooks.hook_places import MAX_CHAIN, HookPlaces
from qvmi.semantics.linux.structures.record import compile_reader, read_table
from qvmi.symbols.layout import Symbols, field_offset, struct_size

__all__ = ["Tracepoints"]

_DISTANCE: Final = Struct("<i")
_POINTER: Final = Struct("<Q")
_MAX_TRACEPOINTS: Final = 1 << 17
"""Of the kernel and all modules; a kernel has some thousand, a module dozens."""
_TABLE: Final = "tracepoint"
_NAME: Final = "__tracepoint_"


class Tracepoints:
    """This reads the tracepoints of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self._funcs = field_offset(symbols, "tracepoint", "funcs")
        self._func = field_offset(symbols, "tracepoint_func", "func")
        self._stride = struct_size(symbols, "tracepoint_func")
        if self._func + _POINTER.size > self._stride:
            raise LayoutNotFound("tracepoint_func")
        self._read = space.unpacker(_POINTER)
        self._own: tuple[int, ...] = ()

    def hooks(self, modules: Iterable[Module], places: HookPlaces) -> None:
        """This adds what is called at tracepoints now.

        Raises:
            SymbolsError: the profile does not tell of those of modules.
        """
        start = self._symbols.find("__start___tracepoints_ptrs")
        stop = self._symbols.find("__stop___tracepoints_ptrs")
        if start is not None and stop is not None and not self._own:
            count = (stop - start) // _DISTANCE.size
            self._own = self._table(start, count, _MAX_TRACEPOINTS, places)
        for tracepoint in self._own:
            self._called(tracepoint, "", places)
        self._add_of_modules(modules, places)

    def _add_of_modules(self, modules: Iterable[Module], places: HookPlaces) -> None:
        read = compile_reader(
            self._space,
            (field_offset(self._symbols, "module", "num_tracepoints"), "I"),
            (field_offset(self._symbols, "module", "tracepoints_ptrs"), "Q"),
        )
        room = _MAX_TRACEPOINTS
        for module in modules:
            if places.is_full:
                return
            try:
                count, table = read(module.struct_address)
            except MemoryFault:
                continue  # it was unloaded in the meantime
            found = self._table(table, count, room, places)
            room -= len(found)
            for tracepoint in found:
                self._called(tracepoint, module.name, places)

    def _table(self, start: int, count: int, room: int, places: HookPlaces) -> tuple[int, ...]:
        """These are the tracepoints of a table, unless it has more than there is room for."""
        if not 0 <= count <= room:
            places.gap(_TABLE, start, f"{count} of them, where there is room for {room}")
            return ()
        try:
            rows = read_table(self._space, Va(start), count, _DISTANCE)
        except MemoryFault as fault:
            places.gap(_TABLE, start, str(fault))
            return ()
        return tuple(at + distance for at, (distance,) in rows)

    def _called(self, tracepoint: int, module: str, places: HookPlaces) -> None:
        try:
            funcs = self._read(tracepoint + self._funcs)[0]
            if not funcs:
                return
            name = module or self._name(tracepoint)
            for number in range(MAX_CHAIN):
                if places.is_full:
                    return
                place = funcs + number * self._stride + self._func
                target = self._read(place)[0]
                if not target:
                    return
                places.add(_TABLE, name, place, target)
            places.gap(_TABLE, tracepoint, f"what is called at {name} does not end")
        except MemoryFault as fault:
            places.gap(_TABLE, tracepoint, str(fault))

    def _name(self, tracepoint: int) -> str:
        found = self._symbols.nearest(Va(tracepoint))
        return found.name.removeprefix(_NAME) if found else ""
