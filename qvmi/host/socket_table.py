"""The kernel's tables of open sockets: both ends of each connection on this host.

References: sock_diag(7), Linux ``include/uapi/linux/unix_diag.h``, ``net/unix/diag.c``;
proc_net_tcp in Linux ``Documentation/networking/proc_net_tcp.rst``; unix(7) and ``net/unix/af_unix.c``
for ``/proc/net/unix``.
"""

import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["TcpEnd", "UnixEnd", "tcp_ends", "unix_ends", "unix_names"]

_MAX_ANSWER: Final = 32 << 20  # bytes; 300,000 Unix sockets
_MAX_TABLE: Final = 32 << 20  # bytes of a table in /proc; 200,000 TCP sockets
_KERNEL_TIMEOUT_S: Final = 0.5
_RECEIVE: Final = 1 << 16  # the kernel fills 32 KB at most (NLMSG_GOODSIZE)

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ALL_STATES: Final = 0xFFFFFFFF
_SHOW_NAME_FILE_AND_PEER: Final = 1 | 2 | 4  # UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER
_NAME, _FILE, _PEER = 0, 1, 2  # UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_QUESTION: Final = struct.Struct("=BBHIIIII")  # unix_diag_req
_END: Final = struct.Struct("=BBBBIII")  # unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr
_VFS: Final = struct.Struct("=II")  # unix_diag_vfs: inode, device
_LOW_BITS: Final = 0xFFFFFFFF
_TCP_LISTEN: Final = 10  # Unix sockets use TCP's numbers


@dataclass(frozen=True, slots=True)
class UnixEnd:
    """This is one end of a Unix connection, or a socket without one.

    Args:
        name: the path it was bound to, empty for a client's end.
        inode: its own inode.
        peer: the other end's inode; 0 while nobody has accepted the connection, None without one.
        listening: it takes connections.
        file: the low 32 bits of the inode of the file it was bound to; 0 for none.
    """

    name: str
    inode: int
    peer: int | None
    listening: bool = False
    file: int = field(default=0, compare=False)

    def is_at(self, path: Path) -> bool:
        """This tells whether it was bound to this path, by whatever name: one may be relative."""
        if self.name in {str(path), os.path.realpath(path)}:
            return True
        if not self.file or Path(self.name).name != path.name:
            return False
        with suppress(OSError):
            return path.stat().st_ino & _LOW_BITS == self.file
        return False


@dataclass(frozen=True, slots=True)
class TcpEnd:
    """This is one end of a TCP connection, or a listening socket.

    Args:
        local: ``address:port`` as the kernel prints it, in hexadecimal.
        remote: the other end's.
        inode: 0 while nobody has accepted the connection.
        listening: it is no connection.
    """

    local: str
    remote: str
    inode: int
    listening: bool


def unix_ends(kernel: socket.socket | None = None) -> Iterator[UnixEnd]:
    """This asks the kernel for all Unix sockets of a network namespace.

    Args:
        kernel: a ``NETLINK_SOCK_DIAG`` socket that was made in that namespace, which is closed; by
            default ours.

    Raises:
        OSError: the kernel gives no answer (a sandbox without netlink).
    """
    question = _QUESTION.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME_FILE_AND_PEER, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    if kernel is None:
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    with kernel:
        kernel.settimeout(_KERNEL_TIMEOUT_S)
        kernel.send(header + question)
        received = 0
        while received < _MAX_ANSWER:
            datagram = kernel.recv(_RECEIVE)
            received += len(datagram)
            for kind, body in _pieces(datagram, _HEADER):
                if kind != _SOCK_DIAG_BY_FAMILY:  # NLMSG_DONE, NLMSG_ERROR
                    return
                yield _unix_end(body)


def _pieces(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """These are the netlink messages, or attributes, in `data`: kind and body, 4-aligned."""
    at = 0
    while at + header.size <= len(data):
        length, kind = header.unpack_from(data, at)[:2]
        if length < header.size:
            return
        yield kind, data[at + header.size : at + length]
        at += (length + 3) & ~3


def _unix_end(body: bytes) -> UnixEnd:
    attributes = dict(_pieces(body[_END.size :], _ATTRIBUTE))
    peer = attributes.get(_PEER)
    name = attributes.get(_NAME, b"").rstrip(b"\0")
    state, _, inode = _END.unpack_from(body)[2:5]
    return UnixEnd(
        name=name.decode(errors="surrogateescape"),
        inode=inode,
        peer=int.from_bytes(peer, "little") if peer else None,
        listening=state == _TCP_LISTEN,
        file=_VFS.unpack_from(attributes[_FILE])[0] if _FILE in attributes else 0,
    )


# sl, local_address, rem_address, st, queues, timer, retransmits, uid, timeout, inode
_TCP_ROW: Final = re.compile(
    r"^ *\d+: ([0-9A-F:]+) ([0-9A-F:]+) ([0-9A-F]{2})(?: +\S+){2} +\S+ +\d+ +\d+ +(\d+) ",
    re.MULTILINE,
)
_MAPPED: Final = "0000000000000000FFFF0000"  # ::ffff:0:0/96, an IPv4 address on an IPv6 socket
_ESTABLISHED, _LISTEN = "01", "0A"


def tcp_ends(pid: str = "self") -> Iterator[TcpEnd]:
    """These are the connections and listening sockets in a process's network namespace."""
    for table in ("tcp", "tcp6"):
        for local, remote, state, inode in _TCP_ROW.findall(_table(pid, table)):
            if state in {_ESTABLISHED, _LISTEN}:
                yield TcpEnd(
                    local.removeprefix(_MAPPED),
                    remote.removeprefix(_MAPPED),
                    int(inode),
                    listening=state == _LISTEN,
                )


# Num, RefCount, Protocol, Flags, Type, St, Inode, Path
_UNIX_ROW: Final = re.compile(
    r"^\S+: \S+ \S+ ([0-9A-F]{8}) 0001 ([0-9A-F]{2}) +(\d+) (.+)$", re.MULTILINE
)
_ACCEPTS: Final = 0x10000  # __SO_ACCEPTCON
_CONNECTED: Final = "03"


def unix_names(pid: str = "self") -> dict[str, bool]:
    """These are the paths that are listened on in a process's network namespace.

    Returns:
        For each path, whether a connection to it has been accepted and is still open.
    """
    rows = _UNIX_ROW.findall(_table(pid, "unix"))
    held = {path for _, state, inode, path in rows if state == _CONNECTED and inode != "0"}
    return {path: path in held for flags, _, _, path in rows if int(flags, 16) & _ACCEPTS}


def _table(pid: str, name: str) -> str:
    with suppress(OSError), (Path("/proc") / pid / "net" / name).open("rb") as file:
        return file.read(_MAX_TABLE).decode(errors="surrogateescape")
    return ""
