"""Kernel modules that come and go, seen in the kernel's list of them.

References: Linux kernel/module/main.c (``add_unformed_module``: a new one is put first).
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.structures.known_rows import KnownRows
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.events import EventKind, ModuleLoaded, ModuleUnloaded
from qvmi.symbols.layout import Symbols, address

__all__ = ["ModuleEvents"]

_LINKS: Final = Struct("<QQ")


class ModuleEvents:
    """This tells of the modules of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists them.
        wanted: which kinds are told.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        modules: Modules,
        wanted: Callable[[EventKind], bool],
    ) -> None:
        self._modules = modules
        self._head = address(symbols, "modules")
        self._read_links = space.unpacker(_LINKS)
        self._links = (0, 0)
        self._wants_load = wanted(EventKind.LOADED)
        self._wants_unload = wanted(EventKind.UNLOADED)
        self._known: KnownRows[tuple[Va, str], Module] = KnownRows()

    def begin(self, sink: EventSink) -> None:
        """This takes note of what is loaded.

        Raises:
            WalkFailed, MemoryFault: that cannot be done.
        """
        self._links = self._head_links()
        walk = self._modules.modules()
        self._known = KnownRows(_by_identity(walk))
        sink.gaps("modules", walk.gaps)

    def glance(self, sink: EventSink) -> None:
        """This looks for a module in front of the others.

        Raises:
            MemoryFault: the list's head cannot be read.
        """
        links = self._head_links()
        if links != self._links:
            self._links = links
            self.rescan(sink)

    def rescan(self, sink: EventSink) -> None:
        """This looks at the whole list."""
        try:
            walk = self._modules.modules()
        except WalkFailed as failed:
            sink.gaps("modules", [Gap("module.list", self._head, str(failed))])
            return
        sink.gaps("modules", walk.gaps)
        came, gone = self._known.take(_by_identity(walk), is_whole=not walk.gaps)
        for module in came if self._wants_load else ():
            sink.put(ModuleLoaded(sink.after, sink.label(), module))
        for module in gone if self._wants_unload else ():
            sink.put(ModuleUnloaded(sink.after, sink.label(), module))

    def _head_links(self) -> tuple[int, int]:
        following, before = self._read_links(self._head)
        return following, before


def _by_identity(walk: ListWalk[Module]) -> dict[tuple[Va, str], Module]:
    return {(row.struct_address, row.name): row for row in walk.rows.values()}
