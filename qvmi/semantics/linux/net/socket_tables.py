"""The kernel's own tables of sockets, which hold those that no descriptor leads to, too.

References: Linux include/net/inet_hashtables.h (``inet_hashinfo``; ``listening_hash`` until 5.19,
cae3873c5b3a; a table of connections for each network since 6.1, d1e5e6408b30), include/net/udp.h
(``udp_table``; for each network since 6.2, 9804985bf27f), include/net/raw.h, net/unix/af_unix.c (for
each network since 6.0, cf2f225e2653), include/net/netns/packet.h, net/netlink/af_netlink.h.
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.net.net_namespace import NetNamespaces
from qvmi.semantics.linux.net.sock_common import INET_FAMILIES, NETLINK, PACKET, UNIX, Socks
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.hash_table import HashTable, TableWalk
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.rows.sockets import Socket
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["SocketTables", "TabledSockets"]

_STEPS: Final = 1 << 19
"""Sockets and pages of tables for one question: twice the connections in TIME_WAIT that a kernel keeps
unless it is told to keep more."""
_LISTENING_HEADS: Final = 32
"""``INET_LHTABLE_SIZE``."""
_RAW_HEADS: Final = 256
"""``RAW_HTABLE_SIZE``."""
_UNIX_HEADS: Final = 512
"""``2 * UNIX_HASH_SIZE``, since 6.0 ``UNIX_HASH_SIZE``."""
_NETLINK_PROTOCOLS: Final = 32
"""``MAX_LINKS``."""
_POINTER_SIZE: Final = 8
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")

TabledSockets = TableWalk[Socket]
_Table = HashTable[Socket]


class SocketTables:
    """This lists what the kernel's tables of sockets hold, of every network namespace.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        socks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what sockets and namespaces need.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, socks: Socks) -> None:
        self._space = space
        self._symbols = symbols
        self._socks = socks
        self._namespaces = NetNamespaces(space, symbols)
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)
        self._node = field_offset(symbols, "sock_common", "skc_node")

    def walk(self) -> TabledSockets:
        """This walks all tables; what cannot be looked at is a gap."""
        tabled: TabledSockets = TableWalk(self._space, Effort(_STEPS))
        nets = self._nets(tabled.result)
        kinds = (self._tcp, self._udp, self._raw, self._unix, self._packet, self._netlink)
        seen: set[tuple[str, int]] = set()
        for tables in kinds:
            try:
                for table in tables(nets):
                    if (table.structure, table.heads) not in seen:
                        seen.add((table.structure, table.heads))
                        tabled.add(table)
            except (SymbolsError, MemoryFault, Implausible) as error:
                where = f"tables of {tables.__name__.strip('_')} sockets"
                tabled.result.gaps.append(Gap(where, None, str(error)))
            except Spent as spent:
                tabled.result.gaps.append(Gap("tables of sockets", None, str(spent)))
                break
        return tabled

    def listening(self) -> tuple[tuple[HashTable[Socket], ...], list[Gap]]:
        """These are the tables that have what listens, TCP's and those of Unix sockets, and what is wrong.

        Who listens has one table for all networks, whatever they have for their connections.
        """
        result: ListWalk[Socket] = ListWalk()
        nets = self._nets(result)
        try:
            found = (
                self._listening(address(self._symbols, "tcp_hashinfo")),
                *self._unix(nets),
            )
        except (SymbolsError, MemoryFault) as error:
            return (), [*result.gaps, Gap("tables of sockets", None, str(error))]
        return found, result.gaps

    def with_unheld(self, held: ListWalk[Socket], tabled: TabledSockets) -> ListWalk[Socket]:
        """This adds to the sockets that descriptors lead to those of the tables that none leads to.

        Args:
            held: found after the tables were walked, so that whoever had one is among them.
            tabled: what the tables held.
        """
        known = {row.address for row in held.rows.values()}
        result = ListWalk(dict(held.rows), [*held.gaps, *tabled.result.gaps])
        result.retries = held.retries + tabled.result.retries
        for entry, row in tabled.result.rows.items():
            if row.address in known:
                continue
            now = self._seen_again(tabled, entry, row)
            if now is None:
                result.retries += 1
            else:
                result.rows[len(result.rows)] = now
        return result

    def _seen_again(self, tabled: TabledSockets, entry: int, row: Socket) -> Socket | None:
        """This is a socket as it is now; None where it is gone, or may be another one that is open."""
        try:
            now = tabled.table_of[entry].visit(entry)
            is_there = tabled.still_has(entry)
        except (MemoryFault, Implausible):
            return None
        return now if is_there and now.inode in {row.inode, 0} else None

    def _nets(self, result: ListWalk[Socket]) -> tuple[Va, ...]:
        try:
            nets = self._namespaces.addresses()
        except WalkFailed as failed:
            result.gaps.append(Gap("net.list", None, str(failed)))
            return ()
        result.gaps += nets.gaps
        result.retries += nets.retries
        return tuple(nets.rows.values())

    def _chains(
        self,
        structure: str,
        heads: int,
        count: int,
        *,
        families: frozenset[int] = INET_FAMILIES,
        stride: int = _POINTER_SIZE,
        is_numbered: bool = False,
    ) -> _Table:
        """This is a table whose sockets are linked as most are, by ``skc_node``."""
        return HashTable(
            structure,
            heads,
            count,
            stride,
            self._node,
            lambda entry: self._socks.unheld(entry, families),
            is_numbered=is_numbered,
        )

    def _tcp(self, nets: Iterable[Va]) -> Iterator[_Table]:
        """These are the connections and who listens; a network may have connections of its own."""
        symbols = self._symbols
        infos = [int(address(symbols, "tcp_hashinfo"))]
        # In the releases before, tcp_death_row was a pointer for a while.
        if symbols.find_field("netns_ipv4", ("sysctl_tcp_child_ehash_entries",)):
            offset = self._ipv4("tcp_death_row")
            offset += field_offset(symbols, "inet_timewait_death_row", "hashinfo")
            infos += [self._read_pointer(net + offset)[0] for net in nets]
        ehash, mask = (field_offset(symbols, "inet_hashinfo", n) for n in ("ehash", "ehash_mask"))
        for info in dict.fromkeys(infos):
            heads, last = self._read_pointer(info + ehash)[0], self._read_number(info + mask)[0]
            yield self._chains("tcp_hashinfo.ehash", heads, last + 1, is_numbered=True)
            yield self._listening(info)

    def _listening(self, info: int) -> _Table:
        symbols = self._symbols
        bucket = "inet_listen_hashbucket"
        head = field_offset(symbols, bucket, "nulls_head")
        stride = _size(symbols, bucket)
        old = symbols.find_field("inet_hashinfo", ("listening_hash",))
        if old is not None:
            heads, count = info + old.offset, _LISTENING_HEADS
        else:
            heads = self._read_pointer(info + field_offset(symbols, "inet_hashinfo", "lhash2"))[0]
            mask = field_offset(symbols, "inet_hashinfo", "lhash2_mask")
            count = self._read_number(info + mask)[0] + 1
        name = "tcp_hashinfo.listening_hash" if old else "tcp_hashinfo.lhash2"
        return self._chains(name, heads + head, count, stride=stride, is_numbered=True)

    def _udp(self, nets: Iterable[Va]) -> Iterator[_Table]:
        symbols = self._symbols
        tables = [int(address(symbols, "udp_table"))]
        light = symbols.find("udplite_table")
        tables += [] if light is None else [int(light)]
        if symbols.find_field("netns_ipv4", ("udp_table",)):
            offset = self._ipv4("udp_table")
            tables += [self._read_pointer(net + offset)[0] for net in nets]
        hashes, mask = (field_offset(symbols, "udp_table", name) for name in ("hash", "mask"))
        head, stride = field_offset(symbols, "udp_hslot", "head"), _size(symbols, "udp_hslot")
        for table in dict.fromkeys(tables):
            heads, last = self._read_pointer(table + hashes)[0], self._read_number(table + mask)[0]
            yield self._chains("udp_table.hash", heads + head, last + 1, stride=stride)

    def _raw(self, _: Iterable[Va]) -> Iterator[_Table]:
        offset = field_offset(self._symbols, "raw_hashinfo", "ht")
        for name in ("raw_v4_hashinfo", "raw_v6_hashinfo"):
            info = self._symbols.find(name)
            if info is not None:
                yield self._chains(f"{name}.ht", info + offset, _RAW_HEADS)

    def _unix(self, nets: Iterable[Va]) -> Iterator[_Table]:
        symbols = self._symbols
        common = symbols.find("unix_socket_table")
        if common is not None:
            yield self._chains("unix_socket_table", common, _UNIX_HEADS, families=UNIX)
            return
        offset = field_offset(symbols, "net", "unx") + field_offset(symbols, "netns_unix", "table")
        offset += field_offset(symbols, "unix_table", "buckets")
        for net in nets:
            heads = self._read_pointer(net + offset)[0]
            yield self._chains("net.unx.table", heads, _UNIX_HEADS, families=UNIX)

    def _packet(self, nets: Iterable[Va]) -> Iterator[_Table]:
        if self._symbols.find_field("net", ("packet",)) is None:
            return  # a kernel without packet sockets
        offset = field_offset(self._symbols, "net", "packet")
        offset += field_offset(self._symbols, "netns_packet", "sklist")
        for net in nets:
            yield self._chains("net.packet.sklist", net + offset, 1, families=PACKET)

    def _netlink(self, _: Iterable[Va]) -> Iterator[_Table]:
        """These are one table a protocol, or two while one is made anew."""
        symbols = self._symbols
        first = self._read_pointer(address(symbols, "nl_table"))[0]
        first += field_offset(symbols, "netlink_table", "hash")
        first += field_offset(symbols, "rhashtable", "tbl")
        future = field_offset(symbols, "bucket_table", "future_tbl")
        for protocol in range(_NETLINK_PROTOCOLS):
            at = self._read_pointer(first + protocol * _size(symbols, "netlink_table"))[0]
            for _again in range(2):
                if not at:
                    break
                yield self._buckets(at)
                at = self._read_pointer(at + future)[0]

    def _buckets(self, table: int) -> _Table:
        symbols = self._symbols
        names = ("size", "nest", "buckets")
        size, nest, buckets = (field_offset(symbols, "bucket_table", name) for name in names)
        if self._read_number(table + nest)[0]:
            raise Implausible(f"a nested table at {table:#x}")
        return HashTable(
            "nl_table.hash",
            table + buckets,
            self._read_number(table + size)[0],
            _POINTER_SIZE,
            field_offset(symbols, "netlink_sock", "node"),
            lambda entry: self._socks.unheld(entry, NETLINK),
            points_back=False,
        )

    def _ipv4(self, name: str) -> int:
        return field_offset(self._symbols, "net", "ipv4") + field_offset(
            self._symbols, "netns_ipv4", name
        )


def _size(symbols: Symbols, type_name: str) -> int:
    size = symbols.size_of(type_name)
    if size is None:
        raise LayoutNotFound(type_name)
    return size
