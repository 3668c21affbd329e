"""Network namespaces: the list of all there are, those that no process is in among them.

References: Linux net/core/net_namespace.c (``net_namespace_list``), include/net/net_namespace.h.
"""

from typing import Final

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.list import ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["NetNamespaces"]

_MAX_NAMESPACES: Final = 1 << 16
"""Each has its own loopback device and tables: half a MiB of kernel memory."""


class NetNamespaces:
    """This lists the network namespaces.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the list needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._head = address(symbols, "net_namespace_list")
        offset = field_offset(symbols, "net", "list")
        self._shape: ListShape[Va] = ListShape(
            structure="net.list",
            link_offset=offset,
            read=compile_reader(space, (offset, "Q"), (offset + 8, "Q")),
            visit=lambda net, _: net,
            limit=_MAX_NAMESPACES,
        )

    def addresses(self) -> ListWalk[Va]:
        """This lists each ``struct net``, the initial one first.

        Raises:
            WalkFailed: the list cannot be walked at all.
        """
        return walk_list(self._space, self._head, self._shape)
