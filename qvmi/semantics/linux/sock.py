"""Sockets that processes have open: ``struct sock``, found through their files.

References: Linux include/net/sock.h (``sock_common``), include/net/tcp_states.h, include/linux/net.h
(``struct socket``), include/net/af_unix.h; net/ipv4/tcp_ipv4.c and net/unix/af_unix.c for what
``/proc/net`` shows of them.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, OpenFile, Process, Socket
from qvmi.semantics.linux.d_path import text_of
from qvmi.semantics.linux.fdtable import OpenFiles
from qvmi.semantics.linux.list import Implausible, ListWalk
from qvmi.semantics.linux.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["Sockets"]

_RETRIES: Final = 3
_MAX_GAPS: Final = 1000
_UNIX, _INET, _INET6, _NETLINK, _PACKET = 1, 2, 10, 16, 17
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
"""``IPPROTO_…``; multipath TCP is one of 16 bits."""
_MPTCP: Final = 262
_RAW: Final = 3
_STATES: Final = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
"""By ``TCP_…``, which sockets of every family use; a datagram socket that is not connected is CLOSE."""
_MAX_ADDRESS: Final = 110
"""``sizeof(struct sockaddr_un)``."""
_FAMILY_SIZE: Final = 2
"""Of ``sun_family``, which is before the path."""
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")


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


class Sockets:
    """This lists the sockets that processes have open.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        files: lists open files, some of which are sockets.

    Raises:
        SymbolsError: the profile lacks what sockets need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, files: OpenFiles) -> None:
        self._space = space
        self._files = files
        self._operations = address(symbols, "socket_file_ops")
        self._read_file = compile_reader(
            space,
            (field_offset(symbols, "file", "f_op"), "Q"),
            (field_offset(symbols, "file", "private_data"), "Q"),
        )
        self._read_socket = compile_reader(
            space,
            (field_offset(symbols, "socket", "file"), "Q"),
            (field_offset(symbols, "socket", "sk"), "Q"),
        )
        self._read_sock = compile_reader(space, *_sock_members(symbols))
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)
        self._net_number = field_offset(symbols, "net", "ns")
        self._net_number += field_offset(symbols, "ns_common", "inum")
        self._netlink_port = field_offset(symbols, "netlink_sock", "portid")
        self._unix_address = field_offset(symbols, "unix_sock", "addr")
        self._unix_peer = field_offset(symbols, "unix_sock", "peer")
        self._address_length = field_offset(symbols, "unix_address", "len")
        self._address_name = field_offset(symbols, "unix_address", "name")

    def of(self, processes: Iterable[Process]) -> ListWalk[Socket]:
        """This lists the sockets of processes, each descriptor of one as a row."""
        files = self._files.of(processes, operations=self._operations)
        result: ListWalk[Socket] = ListWalk(gaps=files.gaps, retries=files.retries)
        for file in files.rows.values():
            if file.kind != "socket":
                continue
            self._add(file, result)
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many sockets are wrong"
                result.gaps.append(Gap("struct socket", file.address, why))
                break
        return result

    def _add(self, file: OpenFile, result: ListWalk[Socket]) -> None:
        """This adds one socket, if its file is still that of a socket behind the reading of it."""
        why = ""
        for _ in range(_RETRIES):
            try:
                before = self._read_file(file.address)
                if before[0] != self._operations:
                    return  # a special file in a folder, or closed and used again
                row = self._row(file, before[1])
                if self._read_file(file.address) == before:
                    result.rows[len(result.rows)] = row
                    return
            except (MemoryFault, Implausible) as error:
                why = str(error)
            result.retries += 1
        where = f"descriptor {file.fd} of process {file.pid}"
        result.gaps.append(Gap("struct socket", file.address, f"{where}: {why}"))

    def _row(self, file: OpenFile, socket: int) -> Socket:
        owner, sock = self._read_socket(socket)
        if owner != file.address:
            raise Implausible(f"the socket at {socket:#x} is of the file at {owner:#x}")
        its = _Sock._make(self._read_sock(sock))
        if its.state >= len(_STATES):
            raise Implausible(f"a socket in state {its.state}")
        local, remote = self._ends(sock, its)
        return Socket(
            file.pid,
            file.fd,
            _protocol(its),
            local,
            remote,
            _STATES[its.state],
            self._read_number(its.net + self._net_number)[0],
            file.inode,
            Va(sock),
        )

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
    yield field_offset(symbols, "sock", "sk_type"), "H"
    yield field_offset(symbols, "sock", "sk_protocol"), "H"
