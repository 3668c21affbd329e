"""Sockets that begin to listen, seen in the kernel's tables of them.

References: Linux include/net/tcp_states.h (``TCP_LISTEN``, which Unix sockets use too), and what
`qvmi.semantics.linux.net.socket_tables` names.
"""

from typing import Final

from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.net.socket_tables import SocketTables
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.hash_table import HashTable, TableWalk, UsedChains
from qvmi.semantics.linux.structures.known_rows import KnownRows
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.events import SocketListening
from qvmi.semantics.rows.sockets import Socket
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["ListenEvents"]

_LISTEN: Final = 10
"""``TCP_LISTEN``."""
_STEPS: Final = 1 << 17
"""Sockets and pages of tables that one look may cost. With more, some are a gap."""

_State = tuple[int, int]
_Key = tuple[int, int]
"""A socket's address and port."""


class ListenEvents:
    """This tells of the sockets of one kernel that listen.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tables: has the tables they are in.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tables: SocketTables) -> None:
        self._space = space
        self._tables = tables
        common = field_offset(symbols, "sock", "__sk_common")
        self._read_state = compile_reader(
            space,
            (common + field_offset(symbols, "sock_common", "skc_num"), "H"),
            (common + field_offset(symbols, "sock_common", "skc_state"), "B"),
        )
        self._used: dict[tuple[str, int], UsedChains] = {}
        self._known: KnownRows[_Key, HashTable[Socket]] = KnownRows()

    def begin(self, sink: EventSink) -> None:
        """This takes note of what listens."""
        self._known = KnownRows(self._look(sink)[0])

    def glance(self, sink: EventSink) -> None:
        """This does nothing: sockets are looked at in the slower looks."""

    def rescan(self, sink: EventSink) -> None:
        """This looks at all tables."""
        now, is_whole = self._look(sink)
        for key in [one for one in now if not self._known.knows(one)]:
            try:
                row = now[key].visit(key[0])
            except (MemoryFault, Implausible):
                del now[key]  # it changes; the next look sees it if it stays
            else:
                sink.put(SocketListening(sink.after, sink.label(), row))
        self._known.take(now, is_whole=is_whole)

    def _look(self, sink: EventSink) -> tuple[dict[_Key, HashTable[Socket]], bool]:
        """These are the sockets that listen, each with its table, and whether no gap may hide others."""
        tables, gaps = self._tables.listening()
        walk: TableWalk[_State] = TableWalk(self._space, Effort(_STEPS))
        used: dict[tuple[str, int], UsedChains] = {}
        by_place = {(table.structure, table.heads): table for table in tables}
        try:
            for place, table in by_place.items():
                used[place] = self._used.get(place) or UsedChains()
                walk.add(table.visited_by(self._state), used[place])
        except Spent as spent:
            gaps.append(Gap("tables of sockets", None, str(spent)))
        self._used = used
        gaps += walk.result.gaps
        sink.gaps("sockets", gaps)
        found: dict[_Key, HashTable[Socket]] = {}
        for entry, (port, state) in walk.result.rows.items():
            at = walk.table_of[entry]
            if state == _LISTEN:
                found[entry, port] = by_place[at.structure, at.heads]
        return found, not gaps

    def _state(self, sock: int) -> _State:
        port, state = self._read_state(sock)
        return port, state
