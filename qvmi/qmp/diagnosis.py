"""Says in words why an address gave no QMP session, with the way out."""

from collections.abc import Mapping, Sequence
from typing import Final

from qvmi.errors import AttachError, NotQmp, QmpBusy
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import HostProcess
from qvmi.host.peer import Peer, clients_at
from qvmi.host.stream import no_answer
from qvmi.qmp.command_line import Purpose, parse_command_line

__all__ = ["GDBSTUB", "foreign_speech", "is_gdbstub", "queue_full", "silence", "verdict"]

GDBSTUB: Final = (b"$", b"+$")
"""How a packet of the remote serial protocol begins."""

_SPEAKERS: Final[Mapping[tuple[bytes, ...], str]] = {
    GDBSTUB: "a gdbstub",
    (b"QEMU ",): "QEMU's human monitor; QMP is served by -qmp, or -mon with mode=control",
    (b"RFB ",): "a VNC server",
    (b"SSH-",): "an SSH server",
    (b"HTTP/",): "an HTTP server",
}
_LIBVIRT: Final = ("libvirtd", "virtqemud")
_SHOWN: Final = 60  # bytes of what was heard


def queue_full(address: UnixAddress | TcpAddress) -> AttachError:
    """This says why a connection was neither made nor refused; the look at who has it takes 0.3 s."""
    silent = no_answer(address)
    if silent is not None:
        return silent
    holders = clients_at(address)
    if holders:
        return _held(address, holders)
    return QmpBusy(
        str(address), "the queue of clients waiting for it is full; end one of them, or its holder"
    )


def foreign_speech(address: UnixAddress | TcpAddress, first: bytes) -> NotQmp:
    """This says what the bytes that came in place of a greeting look like."""
    if not first:
        return NotQmp(str(address), "closed the connection without a greeting")
    known = [name for starts, name in _SPEAKERS.items() if first.startswith(starts)]
    guess = f": this is {known[0]}" if known else ""
    return NotQmp(str(address), f"no QMP greeting but {first[:_SHOWN]!r}{guess}")


def verdict(address: UnixAddress | TcpAddress, peer: Peer) -> AttachError | None:
    """This says why no greeting will come, however long one waits; None while one still may."""
    other = _other_purpose(address, peer.server)
    if other is not None:
        return NotQmp(str(address), other)
    if not (peer.waiting and peer.holders):
        return None
    return _held(address, peer.holders)


def _held(address: UnixAddress | TcpAddress, clients: Sequence[str]) -> QmpBusy:
    holders = ", ".join(clients)
    hint = "; use libvirt:DOMAIN" if any(name in holders for name in _LIBVIRT) else ""
    return QmpBusy(
        str(address),
        f"held by {holders}, and QEMU serves one client at a time; end that one{hint}, or give"
        " QEMU a second -qmp socket",
    )


def is_gdbstub(address: UnixAddress | TcpAddress, peer: Peer) -> bool:
    """This tells whether QEMU's command line says that a socket is its gdbstub."""
    if peer.server is None:
        return False
    return parse_command_line(peer.server.arguments[1:]).purpose_of(address) is Purpose.GDB


def silence(address: UnixAddress | TcpAddress, peer: Peer) -> AttachError:
    """This says why a connection was made, and no greeting has come in all the time there was."""
    certain = verdict(address, peer)
    if certain is not None:
        return certain
    server = peer.server
    if server is None:
        reason = "connected, but not greeted: another client holds it, or it is no QMP socket"
        return QmpBusy(str(address), reason)
    if server.is_qemu:
        return QmpBusy(str(address), f"{server} does not greet: it is stopped, or hangs")
    if server.program in _LIBVIRT:
        return QmpBusy(str(address), f"{server} holds it; use libvirt:DOMAIN")
    return NotQmp(str(address), f"{server} listens there, which is no QEMU, and says nothing")


def _other_purpose(address: UnixAddress | TcpAddress, server: HostProcess | None) -> str | None:
    """This tells from QEMU's command line that a socket is there for something else than QMP."""
    if server is None:
        return None
    line = parse_command_line(server.arguments[1:])
    purpose = line.purpose_of(address)
    if purpose in {None, Purpose.QMP}:
        return None
    served = [str(s.address) for s in line.sockets if s.purpose is Purpose.QMP and s.address]
    advice = f"; its QMP is at {', '.join(served)}" if served else "; it has no QMP socket"
    return f"this is the {purpose} of {server}{advice}"
