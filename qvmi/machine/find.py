"""The QEMU processes of this host, and how each can be reached.

Nothing is connected to: a connection would stop the guest behind a gdbstub, and keep others from a
QMP socket. The kernel's tables tell who listens and whether somebody is being served.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import HostProcess, host_process, pids
from qvmi.host.socket_table import tcp_ends, unix_names
from qvmi.qmp.address import LibvirtAddress
from qvmi.qmp.command_line import (
    CommandLine,
    Group,
    Purpose,
    ServerSocket,
    parse_command_line,
    parse_config,
)

__all__ = ["FoundMachine", "FoundSocket", "SocketState", "find_machines"]

_MAX_CONFIG: Final = 1 << 20  # bytes of a -readconfig file
_MAX_CONFIGS: Final = 16


class SocketState(StrEnum):
    """This is whether a socket can be used now."""

    FREE = "free"
    BUSY = "busy"
    """Another client is being served; QEMU serves one at a time."""
    FORBIDDEN = "forbidden"
    """Its permissions keep us out."""
    UNSEEN = "unseen"
    """Nobody listens, or in a place (a container) that cannot be seen from here."""


@dataclass(frozen=True, slots=True)
class FoundSocket:
    """This is a socket of a QEMU.

    Args:
        purpose: what it serves: QMP, the human monitor or a gdbstub.
        address: as ``--qmp`` and ``--gdb`` take it; None for a descriptor that was handed down.
        state: whether it can be used now.
    """

    purpose: Purpose
    address: UnixAddress | TcpAddress | None
    state: SocketState


@dataclass(frozen=True, slots=True)
class FoundMachine:
    """This is a running QEMU system emulator.

    Args:
        process: its pid, uid and command line.
        name: the machine's name; None where it was given none.
        machine: the machine type it was started with; None for QEMU's default.
        sockets: its QMP sockets, human monitors and gdbstubs.
        domain: its address through libvirt, where libvirt holds the monitor.
    """

    process: HostProcess
    name: str | None
    machine: str | None
    sockets: tuple[FoundSocket, ...]
    domain: LibvirtAddress | None

    @property
    def reachable_at(self) -> UnixAddress | TcpAddress | LibvirtAddress | None:
        """This is the address to attach to now; None where there is none."""
        for socket in self.sockets:
            if socket.purpose is Purpose.QMP and socket.state is SocketState.FREE:
                return socket.address
        return self.domain

    @property
    def advice(self) -> str:
        """This says how to attach, or what keeps from it and how to change that."""
        if self.reachable_at is not None:
            return f"--qmp {self.reachable_at}"
        qmp = [socket for socket in self.sockets if socket.purpose is Purpose.QMP]
        if not qmp:
            only = " (only a human monitor)" if self.sockets else ""
            return f"no QMP socket{only}: start it with -qmp unix:PATH,server=on,wait=off"
        states = {socket.state for socket in qmp}
        return next(advice for state, advice in _ADVICE.items() if state in states)


_ADVICE: Final = {
    SocketState.BUSY: "another client holds its QMP socket: end that, or start it with a second -qmp",
    SocketState.FORBIDDEN: "its QMP socket belongs to another user",
    SocketState.UNSEEN: "its QMP socket cannot be seen from here (another mount or network namespace)",
}


def find_machines() -> tuple[FoundMachine, ...]:
    """This lists the QEMU processes that can be seen, in the order of their pids.

    A process that ends meanwhile, or hides its details, is left out or told with what is known.
    """
    processes = (host_process(pid) for pid in pids())
    return tuple(_look(process) for process in processes if process and process.is_qemu)


def _look(process: HostProcess) -> FoundMachine:
    arguments = process.arguments[1:]
    line = parse_command_line(arguments)
    if line.config_files:
        line = parse_command_line(arguments, _configured(process.pid, line.config_files))
    wanted = [socket for socket in line.sockets if socket.purpose is not Purpose.OTHER]
    return FoundMachine(
        process=process,
        name=line.name,
        machine=line.machine,
        sockets=tuple(_found(process.pid, socket) for socket in wanted),
        domain=_domain(process, line),
    )


def _configured(pid: int, files: Sequence[str]) -> list[Group]:
    groups: list[Group] = []
    for file in files[:_MAX_CONFIGS]:
        groups += parse_config(_text(_seen_by(pid, file)))
    return groups


def _text(path: Path) -> str:
    """This reads a file that somebody else has named: a regular one, as far as it may be read."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file.read(_MAX_CONFIG).decode(errors="replace")
    return ""


def _seen_by(pid: int, path: str) -> Path:
    """This is a path of a process, which may be relative or in a container, as we reach it."""
    if path.startswith("/"):
        inside = Path(f"/proc/{pid}/root{path}")
        return Path(path) if Path(path).exists() else inside
    with suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink() / path
    return Path(path)


def _found(pid: int, socket: ServerSocket) -> FoundSocket:
    address = socket.address
    if isinstance(address, TcpAddress):
        return FoundSocket(socket.purpose, address, _tcp_state(pid, address))
    if address is None:
        return FoundSocket(socket.purpose, None, SocketState.UNSEEN)
    path = _seen_by(pid, address.path)
    state = _unix_state(pid, address, path)
    with suppress(UsageError):
        address = UnixAddress(str(path))
    return FoundSocket(socket.purpose, address, state)


def _unix_state(pid: int, address: UnixAddress, path: Path) -> SocketState:
    served = unix_names(str(pid)).get(address.path)
    if served is None or not path.exists():
        return SocketState.UNSEEN
    if not os.access(path, os.R_OK | os.W_OK):
        return SocketState.FORBIDDEN
    return SocketState.BUSY if served else SocketState.FREE


def _tcp_state(pid: int, address: TcpAddress) -> SocketState:
    if not _shares_network(pid):
        return SocketState.UNSEEN
    at_port = [end for end in tcp_ends(str(pid)) if end.local.endswith(f":{address.port:04X}")]
    if not any(end.listening for end in at_port):
        return SocketState.UNSEEN
    served = any(end.inode and not end.listening for end in at_port)
    return SocketState.BUSY if served else SocketState.FREE


def _shares_network(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    return True  # another user's process; its ports are most likely this host's


def _domain(process: HostProcess, line: CommandLine) -> LibvirtAddress | None:
    if not line.libvirt or not line.name:
        return None
    # virsh of an ordinary user talks to that user's own libvirt unless told otherwise.
    ours = os.geteuid() in {0, process.uid}
    return LibvirtAddress(line.name, None if ours else "qemu:///system")
