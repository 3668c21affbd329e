"""Rows about sockets."""

import msgspec

from qvmi.addr import Va

__all__ = ["Socket"]


class Socket(msgspec.Struct, frozen=True, gc=False):
    """This is one socket: once for each descriptor that leads to it, or once where none does.

    Args:
        pid: of the process that has it open; None where none has: a connection in TIME_WAIT or
            not accepted yet, the kernel's own, or one whose descriptor is under way in a message.
        fd: the descriptor, None likewise.
        protocol: as the files of ``/proc/net`` are called: ``tcp``, ``udp6``, ``raw``, ``unix``,
            ``netlink``, ``packet`` and so on.
        local: ``ADDRESS:PORT``, ``[ADDRESS]:PORT``, a path (``@`` for NUL, which begins an abstract
            one), or netlink's port id. Paths are the guest's word.
        remote: its peer's, likewise; empty where there is none.
        state: ``LISTEN``, ``ESTABLISHED``, ``CLOSE`` and so on: the kernel uses TCP's for all.
        namespace: of the network, the number that ``/proc/PID/ns/net`` shows.
        inode: as ``/proc/net`` shows it; 0 where it has none (any more, or yet).
        address: of the ``struct sock``, or of the smaller one that stands in for it in TIME_WAIT
            and SYN_RECV.
    """

    pid: int | None
    fd: int | None
    protocol: str
    local: str
    remote: str
    state: str
    namespace: int
    inode: int
    address: Va
