"""Rows about sockets."""

import msgspec

from qvmi.addr import Va

__all__ = ["Socket"]


class Socket(msgspec.Struct, frozen=True, gc=False):
    """This is one socket that a process has open, once for each of its descriptors.

    Args:
        pid: of the process.
        fd: the descriptor.
        protocol: as the files of ``/proc/net`` are called: ``tcp``, ``udp6``, ``raw``, ``unix``,
            ``netlink``, ``packet`` and so on.
        local: ``ADDRESS:PORT``, ``[ADDRESS]:PORT``, a path (``@`` for NUL, which begins an abstract
            one), or netlink's port id. Paths are the guest's word.
        remote: its peer's, likewise; empty where there is none.
        state: ``LISTEN``, ``ESTABLISHED``, ``CLOSE`` and so on: the kernel uses TCP's for all.
        namespace: of the network, the number that ``/proc/PID/ns/net`` shows.
        inode: as ``/proc/net`` shows it.
        address: of the ``struct sock``.
    """

    pid: int
    fd: int
    protocol: str
    local: str
    remote: str
    state: str
    namespace: int
    inode: int
    address: Va
