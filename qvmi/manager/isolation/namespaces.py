"""The network namespaces of this host, seen from outside: their sockets and their interfaces.

References: network_namespaces(7); rtnetlink(7), Linux ``include/uapi/linux/if_link.h``; proc_net_tcp in
Linux ``Documentation/networking/proc_net_tcp.rst``; ``net/packet/af_packet.c`` and
``net/netlink/af_netlink.c`` for their tables in /proc/net.
"""

import ipaddress
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from qvmi.host.host_process import pids
from qvmi.host.socket_table import unix_ends
from qvmi.manager.isolation.facts import Link, Socket, Unseen
from qvmi.manager.isolation.processes import inode_of_namespace

__all__ = ["links_of", "network_sockets", "representatives", "unix_sockets"]

MAX_NAMESPACES: Final = 1024
"""Network namespaces whose sockets are looked at: more than a host full of containers has."""

_MAX_TABLE: Final = 32 << 20  # bytes; 200,000 sockets
_MAX_ANSWER: Final = 8 << 20  # bytes; some 5,000 interfaces
_RECEIVE: Final = 1 << 16
_ENTERS_S: Final = 20.0
"""How long the program that enters a namespace may take: 30 ms, on a loaded host seconds."""
_ANSWERS_S: Final = 5.0

_ROUTE: Final = (socket.AF_NETLINK, socket.SOCK_RAW, 0)
_SOCK_DIAG: Final = (socket.AF_NETLINK, socket.SOCK_RAW, 4)
_PROGRAM: Final = Path(__file__).with_name("network_entrance.py")

# sl, local_address, rem_address, st, queues, timer, retransmits, uid, timeout, inode
_INET: Final = re.compile(
    r"^ *\d+: ([0-9A-F]+):([0-9A-F]{4}) ([0-9A-F]+):([0-9A-F]{4}) ([0-9A-F]{2})"
    r"(?: +\S+){2} +\S+ +\d+ +\d+ +(\d+) ",
    re.MULTILINE,
)
_INET_TABLES: Final = ("tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "icmp6")
_LISTEN: Final = "0A"


def representatives() -> Mapping[int, int] | Unseen:
    """This finds the network namespaces that processes are in: a pid for each."""
    found: dict[int, int] = {}
    for pid in pids():
        inode = inode_of_namespace(pid)
        if not isinstance(inode, Unseen):
            found.setdefault(inode, pid)
        if len(found) > MAX_NAMESPACES:
            return Unseen(f"this host has more than {MAX_NAMESPACES} network namespaces")
    return found


def network_sockets(pid: int, network: int) -> Iterator[Socket]:
    """These are the sockets of a namespace, of all kinds that /proc tells of, but Unix ones."""
    for table in _INET_TABLES:
        for local, port, remote, far, state, inode in _INET.findall(_table(pid, table)):
            yield Socket(
                int(inode),
                table,
                network,
                _place(local, port),
                _place(remote, far) if int(far, 16) else "",
                listening=table.startswith("tcp") and state == _LISTEN,
            )
    for table in ("packet", "netlink"):
        rows = _table(pid, table).splitlines()[1:]
        for row in rows:
            inode = _inode(table, row.split())
            if inode is not None:
                yield Socket(inode, table, network)


def _inode(table: str, fields: list[str]) -> int | None:
    at = (
        8 if table == "packet" else 9
    )  # sk RefCnt Type Proto Iface R Rmem User Inode | … Drops Inode
    return int(fields[at]) if len(fields) > at and fields[at].isdecimal() else None


def _place(address: str, port: str) -> str:
    """This writes an address as people do; the kernel prints it in words of the host's byte order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    shown = ipaddress.ip_address(packed)
    if isinstance(shown, ipaddress.IPv6Address):
        mapped = shown.ipv4_mapped
        return f"{mapped}:{int(port, 16)}" if mapped else f"[{shown}]:{int(port, 16)}"
    return f"{shown}:{int(port, 16)}"


def _table(pid: int, name: str) -> str:
    with suppress(OSError), Path(f"/proc/{pid}/net/{name}").open("rb") as file:
        return file.read(_MAX_TABLE).decode(errors="surrogateescape")
    return ""


def unix_sockets(pid: int, network: int) -> tuple[Socket, ...] | Unseen:
    """These are the Unix sockets of a process's namespace, each with its other end."""
    kernel = _made_in(pid, network, _SOCK_DIAG)
    if isinstance(kernel, Unseen):
        return kernel
    try:
        return tuple(
            Socket(end.inode, "unix", network, end.name, listening=end.listening, peer=end.peer)
            for end in unix_ends(kernel)
        )
    except OSError as error:
        return Unseen(f"the Unix sockets of pid {pid}'s namespace: {error.strerror or error}")


_REQUEST_LINKS: Final = struct.Struct("=IHHIIBxHiII").pack(
    32, 18, 0x301, 1, 0, socket.AF_UNSPEC, 0, 0, 0, 0
)  # nlmsghdr with RTM_GETLINK and NLM_F_REQUEST | NLM_F_DUMP, then ifinfomsg
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_ATTRIBUTE: Final = struct.Struct("=HH")
_NEW_LINK, _DONE = 16, 3
_NAME, _MASTER, _INFO, _KIND = (
    3,
    10,
    18,
    1,
)  # IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_INFO_KIND
_IS_UP: Final = 0x1  # IFF_UP
_IS_LOOPBACK: Final = 0x8  # IFF_LOOPBACK
_TYPE_BITS: Final = 0x3FFF


def links_of(pid: int, network: int) -> tuple[Link, ...] | Unseen:
    """These are the network interfaces of a process's namespace."""
    kernel = _made_in(pid, network, _ROUTE)
    if isinstance(kernel, Unseen):
        return kernel
    try:
        with kernel:
            kernel.settimeout(_ANSWERS_S)
            kernel.send(_REQUEST_LINKS)
            return _links(kernel)
    except (OSError, struct.error) as error:
        return Unseen(f"the interfaces of pid {pid}'s namespace: {error}")


def _links(kernel: socket.socket) -> tuple[Link, ...] | Unseen:
    found: list[Link] = []
    received = 0
    while received < _MAX_ANSWER:
        datagram = kernel.recv(_RECEIVE)
        received += len(datagram)
        for kind, body in _pieces(datagram, _HEADER):
            if kind == _NEW_LINK:
                found.append(_link(body))
            else:
                return tuple(found) if kind == _DONE else Unseen("the kernel lists no interfaces")
    return Unseen("the namespace has more interfaces than are looked at")


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_pieces(body[_LINK.size :], _ATTRIBUTE))
    kind = dict(_pieces(attributes.get(_INFO, b""), _ATTRIBUTE)).get(_KIND, b"")
    return Link(
        index,
        attributes.get(_NAME, b"").rstrip(b"\0").decode(errors="surrogateescape"),
        kind.rstrip(b"\0").decode(errors="surrogateescape"),
        int.from_bytes(attributes.get(_MASTER, b""), sys.byteorder),
        loopback=bool(flags & _IS_LOOPBACK),
        up=bool(flags & _IS_UP),
    )


def _pieces(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """These are the netlink messages, or attributes, in `data`: kind and body, 4-aligned."""
    at = 0
    while at + header.size <= len(data):
        length, kind = header.unpack_from(data, at)[:2]
        if length < header.size:
            return
        yield kind & _TYPE_BITS, data[at + header.size : at + length]
        at += (length + 3) & ~3


def _made_in(pid: int, network: int, kind: tuple[int, int, int]) -> socket.socket | Unseen:
    """This makes a socket in the namespace of a process."""
    if inode_of_namespace("self") == network:
        try:
            return socket.socket(*kind)
        except OSError as error:
            return Unseen(f"the kernel gives no netlink socket: {error.strerror}")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        entered = _enter(theirs, pid, kind)
        if entered:
            return Unseen(f"the network namespace of pid {pid}: {entered}; run qvmi as root")
        theirs.close()
        ours.settimeout(_ANSWERS_S)
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        except OSError as error:
            return Unseen(f"the network namespace of pid {pid}: {error}")
        if not descriptors:
            return Unseen(f"the network namespace of pid {pid} gave no socket")
        made = socket.socket(fileno=descriptors[0])
        made.set_inheritable(False)
        return made


def _enter(channel: socket.socket, pid: int, kind: tuple[int, int, int]) -> str:
    """This runs the program that enters; returns why it could not, or nothing."""
    wanted = ":".join(map(str, map(int, kind)))
    number = str(channel.fileno())
    try:
        done = subprocess.run(  # noqa: S603 - our own file, by our own interpreter
            [sys.executable, "-I", "-S", _PROGRAM, number, str(pid), wanted],
            pass_fds=[channel.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_ENTERS_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return done.stderr.decode(errors="backslashreplace").strip()[-200:] or "it could not be entered"
