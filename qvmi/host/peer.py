"""Who is at the other end of a connection that stays silent, and whose turn it is there.

References: unix(7) for SO_PEERCRED, sock_diag(7).
"""

import os
import socket
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.host.address import SocketAddress, TcpAddress, UnixAddress
from qvmi.host.host_process import HostProcess, host_process, socket_owners
from qvmi.host.socket_table import TcpEnd, tcp_ends, unix_ends

__all__ = ["Peer", "clients_at", "look_at_peer", "peer_pid", "server_at", "tcp_is_listening"]

# The look comes on top of a wait that was in vain; it must not prolong it noticeably.
_SEARCH_S: Final = 0.25
_THOROUGH_S: Final = 5.0  # where nothing was waited for before

_INTERPRETER: Final = "python"

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """This is what the kernel tells about the far end of one of our connections.

    Args:
        server: the process that listens there; None where it cannot be known.
        waiting: our connection has not been accepted; None where the kernel does not tell.
        holders: the clients whose connections were accepted, each in words.
    """

    server: HostProcess | None = None
    waiting: bool | None = None
    holders: tuple[str, ...] = ()


def peer_pid(connection: socket.socket) -> int | None:
    """This is the process that listens at the other end of a Unix connection, else None.

    It is the one that called ``listen``: for a descriptor that was handed down that is not QEMU
    but what started it. A process that our pid namespace does not show has no pid either.
    """
    if connection.family != socket.AF_UNIX:
        return None
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    return _CREDENTIALS.unpack(raw)[0] or None


def look_at_peer(connection: socket.socket) -> Peer:
    """This finds out who serves a connection and who else is connected there; takes up to 0.3 s."""
    with suppress(OSError):
        if connection.family == socket.AF_UNIX:
            return _look_at_unix(connection)
        return _look_at_tcp(connection)
    return Peer()


def _look_at_unix(connection: socket.socket) -> Peer:
    pid = peer_pid(connection)
    ours = os.fstat(connection.fileno()).st_ino
    name = connection.getpeername()
    ends = list(unix_ends())
    waiting = next((end.peer == 0 for end in ends if end.inode == ours), None)
    others = [end.peer for end in ends if end.name == name and end.peer and end.peer != ours]
    held = dict.fromkeys(others, "another client")
    return Peer(host_process(pid) if pid else None, waiting, _in_words(held))


def _look_at_tcp(connection: socket.socket) -> Peer:
    ours = os.fstat(connection.fileno()).st_ino
    ends = list(tcp_ends())
    us = next((end for end in ends if end.inode == ours), None)
    if us is None:
        return Peer()
    far = [end for end in ends if end.local == us.remote and not end.listening]
    waiting = next((end.inode == 0 for end in far if end.remote == us.local), None)
    clients = {end.remote for end in far if end.inode and end.remote != us.local}
    held = {end.inode: "another client" for end in ends if end.local in clients and end.inode}
    remote = tuple("a client on another host" for _ in range(len(clients) - len(held)))
    return Peer(_listener(ends, us.remote.rpartition(":")[2]), waiting, _in_words(held) + remote)


def clients_at(address: SocketAddress) -> tuple[str, ...]:
    """These are the clients that a socket of this host serves, in words, found without connecting.

    None are found where the kernel does not tell: on another host, in another network namespace. Nor
    where no QEMU listens but a gateway, which serves several; whoever has to wait there finds out.
    """
    with suppress(OSError):
        if isinstance(address, UnixAddress):
            path = Path(address.path)
            ends = [end for end in unix_ends() if end.is_at(path)]
            accepted = [end.peer for end in ends if end.peer]
            if accepted and _is_gateway({end.inode for end in ends if end.listening}):
                return ()
            return _in_words(dict.fromkeys(accepted, "another client"))
        tcp = list(tcp_ends())
        port = f":{address.port:04X}"
        if any(end.listening and end.local.endswith(port) for end in tcp):
            clients = {end.remote for end in tcp if end.local.endswith(port) and end.inode}
            held = {end.inode: "another client" for end in tcp if end.local in clients}
            return _in_words(held)
    return ()


def server_at(address: SocketAddress) -> HostProcess | None:
    """This is who serves an address of this host, found without connecting; None where nobody tells.

    Of one in another network namespace the accepted connections alone are seen, which are in their clients'.
    """
    with suppress(OSError):
        if isinstance(address, TcpAddress):
            ends, port = list(tcp_ends()), f":{address.port:04X}"
            inodes = {end.inode for end in ends if end.listening and end.local.endswith(port)}
        else:
            path = Path(address.path)
            inodes = {end.inode for end in unix_ends() if end.is_at(path)} - {0}
        owners = socket_owners(inodes, timeout_s=_THOROUGH_S).values() if inodes else ()
        return next((host_process(pid) for pid in owners), None)
    return None


def tcp_is_listening(port: int) -> bool:
    """This tells whether somebody on this host listens on a TCP port, on whatever address."""
    return any(end.listening and end.local.endswith(f":{port:04X}") for end in tcp_ends())


def _listener(ends: Iterable[TcpEnd], port: str) -> HostProcess | None:
    inodes = {end.inode for end in ends if end.listening and end.local.endswith(":" + port)}
    owners = socket_owners(inodes, timeout_s=_SEARCH_S)
    return next((host_process(pid) for pid in owners.values()), None)


def _is_gateway(inodes: Collection[int]) -> bool:
    """This tells whether another process listens that runs as a qvmi does, and is no QEMU."""
    owners = socket_owners(inodes, timeout_s=_SEARCH_S)
    processes = [host_process(pid) for pid in owners.values() if pid != os.getpid()]
    return any(one.program.startswith(_INTERPRETER) for one in processes if one is not None)


def _in_words(held: dict[int, str]) -> tuple[str, ...]:
    owners = socket_owners(held, timeout_s=_SEARCH_S)
    processes = {inode: host_process(pid) for inode, pid in owners.items()}
    return tuple(_name(processes.get(inode)) or unknown for inode, unknown in held.items())


def _name(process: HostProcess | None) -> str | None:
    if process is None:
        return None
    return "this very process" if process.pid == os.getpid() else str(process)
