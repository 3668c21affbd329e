"""``struct sock``, of whichever family: what a row tells of one, and of the small ones that stand in for one.

References: Linux include/net/sock.h (``sock_common``), include/net/tcp_states.h, include/linux/net.h
(``struct socket``), include/net/af_unix.h; include/net/inet_timewait_sock.h and request_sock.h for those
that are only a ``sock_common`` and a little more; net/ipv4/tcp_ipv4.c and net/unix/af_unix.c for what
``/proc/net`` shows of them.
"""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.sockets import Socket
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["INET_FAMILIES", "NETLINK", "PACKET", "UNIX", "Holder", "Socks"]

_UNIX, _INET, _INET6, _NETLINK, _PACKET = 1, 2, 10, 16, 17
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
"""``IPPROTO_…``; multipath TCP is one of 16 bits."""
_MPTCP: Final = 262
_RAW: Final = 3
_TCP: Final = 6
_STATES: Final = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
"""By ``TCP_…``, which sockets of every family use; a datagram socket that is not connected is CLOSE."""
_MAX_ADDRESS: Final = 110
"""``sizeof(struct sockaddr_un)``."""
_FAMILY_SIZE: Final = 2
"""Of ``sun_family``, which is before the path."""
_TIME_WAIT: Final = 6
_SYN_RECV: Final = 3
_NEW_SYN_RECV: Final = 12
"""Of a ``request_sock``; ``/proc/net`` and ss show it as SYN_RECV."""
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")
_BYTE: Final = Struct("<B")
INET_FAMILIES: Final = frozenset({_INET, _INET6})
UNIX, NETLINK, PACKET = frozenset({_UNIX}), frozenset({_NETLINK}), frozenset({_PACKET})


class Holder(NamedTuple):
    """This is who has a socket open, if anybody has.

    Args:
        pid: of the process, None for nobody's.
        fd: its descriptor, likewise.
        inode: of the socket in sockfs, 0 where it has none.
    """

    pid: int | None
    fd: int | None
    inode: int


_NOBODY: Final = Holder(None, None, 0)


class _Sock(NamedTuple):
    """These are the members of a ``struct sock`` that rows are made of."""

    peer4: bytes
    own4: bytes
    peer_port: bytes
    own_port: int
    family: int
    state: int
    net: int
    peer6: bytes
    own6: bytes
    type: int
    protocol: int


class Socks:
    """This makes rows of sockets by their address.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what sockets need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._read_sock = compile_reader(space, *_sock_members(symbols))
        # Those of the small ones; what lies behind them is not theirs.
        self._read_small = compile_reader(space, *_common_members(symbols))
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)
        self._read_byte = space.unpacker(_BYTE)
        self._net_number = field_offset(symbols, "net", "ns")
        self._net_number += field_offset(symbols, "ns_common", "inum")
        self._netlink_port = field_offset(symbols, "netlink_sock", "portid")
        self._unix_address = field_offset(symbols, "unix_sock", "addr")
        self._unix_peer = field_offset(symbols, "unix_sock", "peer")
        self._address_length = field_offset(symbols, "unix_address", "len")
        self._address_name = field_offset(symbols, "unix_address", "name")
        self._substate = field_offset(symbols, "inet_timewait_sock", "tw_substate")
        self._socket = field_offset(symbols, "sock", "sk_socket")
        self._back = field_offset(symbols, "socket", "sk")
        self._inode = field_offset(symbols, "socket_alloc", "vfs_inode")
        self._inode += field_offset(symbols, "inode", "i_ino")

    def row(self, sock: int, holder: Holder) -> Socket:
        """This is the row of a whole ``struct sock``.

        Raises:
            MemoryFault, Implausible: there is none.
        """
        its = _Sock._make(self._read_sock(sock))
        if its.state >= len(_STATES):
            raise Implausible(f"a socket in state {its.state}")
        local, remote = self._ends(sock, its)
        return self._made(sock, its, holder, (_protocol(its), local, remote, _STATES[its.state]))

    def unheld(self, sock: int, families: Collection[int]) -> Socket:
        """This is the row of what a table holds, as if nobody had it open.

        Args:
            sock: its address: of a ``sock_common``, perhaps of no more than that.
            families: of those that the table may hold.

        Raises:
            MemoryFault, Implausible: there is none.
        """
        its = _Sock._make((*self._read_small(sock), 0, _TCP))
        if its.family not in families:
            raise Implausible(f"a socket of family {its.family}")
        if its.state not in {_TIME_WAIT, _NEW_SYN_RECV} or its.family not in INET_FAMILIES:
            return self.row(sock, _NOBODY._replace(inode=self._inode_of(sock)))
        state = _SYN_RECV
        if its.state == _TIME_WAIT:
            state = self._read_byte(sock + self._substate)[0]
        if state >= len(_STATES):
            raise Implausible(f"a socket that waits in state {state}")
        local, remote = self._ends(sock, its)
        return self._made(sock, its, _NOBODY, (_protocol(its), local, remote, _STATES[state]))

    def _made(
        self, sock: int, its: _Sock, holder: Holder, words: tuple[str, str, str, str]
    ) -> Socket:
        number = self._read_number(its.net + self._net_number)[0]
        return Socket(holder.pid, holder.fd, *words, number, holder.inode, Va(sock))

    def _inode_of(self, sock: int) -> int:
        """This is the number of its inode, 0 where it has no ``struct socket`` (any more, or yet)."""
        socket = self._read_pointer(sock + self._socket)[0]
        if not socket:
            return 0
        if self._read_pointer(socket + self._back)[0] != sock:
            raise Implausible(f"the socket at {socket:#x} is of another sock")
        return int(self._read_pointer(socket + self._inode)[0])

    def _ends(self, sock: int, its: _Sock) -> tuple[str, str]:
        """These are its own address and its peer's."""
        port = int.from_bytes(its.peer_port, "big")
        if its.family == _INET:
            return (
                f"{IPv4Address(its.own4)}:{its.own_port}",
                f"{IPv4Address(its.peer4)}:{port}",
            )
        if its.family == _INET6:
            return (
                f"[{IPv6Address(its.own6)}]:{its.own_port}",
                f"[{IPv6Address(its.peer6)}]:{port}",
            )
        if its.family == _UNIX:
            peer = self._read_pointer(sock + self._unix_peer)[0]
            return self._unix_name(sock), self._unix_name(peer) if peer else ""
        if its.family == _NETLINK:
            return str(self._read_number(sock + self._netlink_port)[0]), ""
        return "", ""

    def _unix_name(self, sock: int) -> str:
        """This is the path that a socket is bound to, with @ for NUL in an abstract one."""
        held = self._read_pointer(sock + self._unix_address)[0]
        if not held:
            return ""
        length = self._read_number(held + self._address_length)[0]
        if not _FAMILY_SIZE <= length <= _MAX_ADDRESS:
            raise Implausible(f"an address of {length} bytes")
        start = Va(held + self._address_name + _FAMILY_SIZE)
        name = self._space.read(start, length - _FAMILY_SIZE)
        if not name.startswith(b"\0"):
            name = name.rstrip(b"\0")
        return text_of(name.replace(b"\0", b"@"))


def _protocol(its: _Sock) -> str:
    """This names family and protocol as ``/proc/net`` names its files."""
    if its.family in {_INET, _INET6}:
        name = _PROTOCOLS.get(its.protocol, f"ip-{its.protocol}")
        if its.protocol == _MPTCP:
            name = "mptcp"
        if its.type == _RAW:
            name = "raw"
        return name if its.family == _INET else f"{name}6"
    names = {_UNIX: "unix", _NETLINK: "netlink", _PACKET: "packet"}
    return names.get(its.family, f"family-{its.family}")


def _sock_members(symbols: Symbols) -> Iterable[tuple[int, str]]:
    """These are the members of :class:`_Sock`."""
    yield from _common_members(symbols)
    yield field_offset(symbols, "sock", "sk_type"), "H"
    yield field_offset(symbols, "sock", "sk_protocol"), "H"


def _common_members(symbols: Symbols) -> Iterable[tuple[int, str]]:
    """These are those that lie in ``sock_common``."""
    common = field_offset(symbols, "sock", "__sk_common")
    for name, form in (
        ("skc_daddr", "4s"),
        ("skc_rcv_saddr", "4s"),
        ("skc_dport", "2s"),
        ("skc_num", "H"),
        ("skc_family", "H"),
        ("skc_state", "B"),
        ("skc_net", "Q"),
        ("skc_v6_daddr", "16s"),
        ("skc_v6_rcv_saddr", "16s"),
    ):
        yield common + field_offset(symbols, "sock_common", name), form
