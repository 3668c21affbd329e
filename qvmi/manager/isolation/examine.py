"""Looks at a machine and says what proves or refutes that it is isolated from the bus."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from qvmi.bus.mosquitto_config import SOCKET
from qvmi.errors import QmpBusy, QmpCommandFailed, UsageError
from qvmi.host.address import UnixAddress
from qvmi.host.host_process import host_process
from qvmi.host.peer import clients_at, peer_pid, server_at
from qvmi.manager.isolation.check import Report
from qvmi.manager.isolation.facts import Machine, Unseen
from qvmi.manager.isolation.gather import Bus, Target, gather
from qvmi.manager.isolation.judge import judge
from qvmi.manager.isolation.monitor_facts import ask_machine
from qvmi.manager.isolation.processes import started_at
from qvmi.qmp.address import LibvirtAddress, parse_address
from qvmi.qmp.monitor import CONNECT_TIMEOUT_S, Monitor
from qvmi.qmp.open import open_monitor

__all__ = ["broker_pid", "examine", "examine_at"]

_LOOKS: Final = 3
_LOOKS_AGAIN_S: Final = 0.1
"""Between looks at who is served: a client that is about to leave is gone by the third."""

_BROKER: Final = "mosquitto"
_CONNECTS_S: Final = 1.0
"""How long a connection to a Unix socket may take that only tells who listens there."""


async def examine(monitor: Monitor, bus: Bus | None, *, pid: int | None = None) -> Report:
    """This examines a machine whose QMP session one has already.

    Args:
        monitor: the session.
        bus: the bus that it must not reach; None where there is none.
        pid: QEMU's; None for who listens at the other end.

    Raises:
        MachineGone: QEMU ended meanwhile.
        BrokerUnavailable: the broker ended meanwhile.
        UsageError: it is not known which process QEMU is.
    """
    listener = monitor.peer_pid()
    found = pid or listener
    if found is None:
        raise UsageError(
            f"{monitor.target}: which process that is cannot be known from here; give --pid, on the"
            " host on which QEMU runs"
        )
    try:
        said: Machine | Unseen = await ask_machine(monitor)
    except QmpCommandFailed as error:
        said = Unseen(f"QEMU refused to say: {error}")
    ours = () if monitor.descriptor is None else (os.fstat(monitor.descriptor).st_ino,)
    sockets = _socket_of(monitor.target)
    return await _concluded(Target(found, said, listener, frozenset(ours), sockets), bus)


async def examine_at(
    address: str, bus: Bus | None, *, pid: int | None = None, timeout_s: float = CONNECT_TIMEOUT_S
) -> Report:
    """This examines the machine at a QMP address, by the kernel's word alone where QMP is held.

    Raises:
        AttachError: nothing of QEMU's is there.
        UsageError: the address is none, or it is not known which process QEMU is.
        MachineGone: QEMU ended meanwhile.
        BrokerUnavailable: the broker ended meanwhile.
    """
    held = await _held(address)
    try:
        if held is not None:
            raise held
        monitor = await open_monitor(address, timeout_s=timeout_s)
    except QmpBusy as busy:
        listener = await asyncio.to_thread(_listener, address)
        found = pid or listener
        if found is None:
            raise
        target = Target(found, Unseen(str(busy)), listener, sockets=_socket_of(address))
        return await _concluded(target, bus)
    try:
        return await examine(monitor, bus, pid=pid)
    finally:
        await monitor.close()


async def _held(address: str) -> QmpBusy | None:
    """This tells of another client that QEMU serves, without connecting: None where there is none.

    A connection that QEMU does not take stays in its queue after it was closed; two fill it.
    """
    place = parse_address(address)
    if isinstance(place, LibvirtAddress):
        return None
    for _ in range(_LOOKS):
        clients = await asyncio.to_thread(clients_at, place)
        if not clients:
            return None
        await asyncio.sleep(_LOOKS_AGAIN_S)
    server = await asyncio.to_thread(server_at, place)
    if server is None or not server.is_qemu:
        return None  # which may serve many
    return QmpBusy(
        str(place), f"held by {', '.join(clients)}, and QEMU serves one client at a time"
    )


async def _concluded(target: Target, bus: Bus | None) -> Report:
    return judge(await asyncio.to_thread(gather, target, bus))


def _socket_of(address: str) -> tuple[str, ...]:
    place = parse_address(address)
    return (str(Path(place.path).absolute()),) if isinstance(place, UnixAddress) else ()


def _listener(address: str) -> int | None:
    """This is who listens at an address, without being served."""
    place = parse_address(address)
    if isinstance(place, LibvirtAddress):
        return None
    known = server_at(place)
    if known is not None:
        return known.pid
    return _pid_behind(place.path) if isinstance(place, UnixAddress) else None


def _pid_behind(path: str) -> int | None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CONNECTS_S)
            connection.connect(path)
            return peer_pid(connection)
    except OSError:
        return None


def broker_pid(named: str) -> int:
    """This finds a broker.

    Args:
        named: its pid, its socket, or the folder that its socket is in.

    Raises:
        UsageError: there is none, or the pid is another program's.
    """
    if named.isdecimal():
        return _mosquitto(int(named))
    path = Path(named)
    pid = _pid_behind(str(path / SOCKET if path.is_dir() else path))
    if pid is None:
        raise UsageError(
            f"{named}: no broker listens there; give its pid, its socket, or the folder that its"
            f" {SOCKET} is in"
        )
    return pid


def _mosquitto(pid: int) -> int:
    """This is the pid of a mosquitto; one that nobody has (any more) is told where it is looked at."""
    found = host_process(pid) if started_at(pid) is not None else None
    if found is not None and not found.program.startswith(_BROKER):
        raise UsageError(
            f"{found} is no {_BROKER}: give the broker's pid, its socket, or the folder that its"
            f" {SOCKET} is in"
        )
    return pid
