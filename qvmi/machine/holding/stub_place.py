"""Where a machine's gdbstub is, or a new one in a private folder where it has none.

References: QEMU ``gdbstub.c`` (``gdbserver_start``: its socket is a character device called ``gdb``, and
there is one in a machine), ``chardev/char-socket.c`` (``qemu_chr_compute_filename``).
"""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import GdbstubBusy, QmpCommandFailed, QmpProtocolError, UsageError
from qvmi.gdbstub.client import GdbClient
from qvmi.host.address import SocketAddress, TcpAddress, UnixAddress, parse_socket_address
from qvmi.host.peer import clients_at
from qvmi.qmp.monitor import Monitor

__all__ = ["StubPlace", "connect_stub", "end_stub", "find_stub", "require_free_stub"]

_LABEL: Final = "gdb"
_FREED_S: Final = 0.5
"""How long a stub may seem to be held that we have left: until the guardian, which has a duplicate of
the connection, and QEMU have closed their ends of it. That takes a millisecond on an idle host."""
_RETRY_S: Final = 0.005
# `disconnected:unix:/run/gdb,server=on`, `tcp:127.0.0.1:1234,server=on <-> 127.0.0.1:4711`
_FILE_NAME: Final = re.compile(
    r"(?:disconnected:)?(?:(unix):([^,]+)|tcp:(.*?):(\d+)),?.*", re.DOTALL
)
_ANY_HOST: Final = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104 - as QEMU writes it


class _Device(msgspec.Struct, frozen=True):
    label: str
    filename: str


@dataclass(frozen=True, slots=True)
class StubPlace:
    """This is where the gdbstub listens.

    Args:
        address: to connect to.
        folder: the private folder of a stub that was started for us; None for the owner's own.
    """

    address: SocketAddress
    folder: Path | None = None


async def find_stub(
    monitor: Monitor, given: str | None, announce: Callable[[Path | None], None]
) -> StubPlace:
    """This finds the machine's gdbstub, and starts one where there is none.

    Args:
        monitor: the conversation with QEMU.
        given: the address that the user named, if any.
        announce: is told the folder of a stub before it is started; whoever is killed right
            afterwards has others who end it. Told None, it was not started after all.

    Raises:
        UsageError: the address has none of the forms, or QEMU starts no stub; says what to do.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    if given is not None:
        return StubPlace(parse_socket_address(given))
    owners = await _owners_stub(monitor)
    return StubPlace(owners) if owners is not None else await _start(monitor, announce)


async def connect_stub(place: StubPlace, *, was_running: bool) -> GdbClient:
    """This connects to a stub, also to one that we have left a moment ago.

    Raises:
        AttachError: it is held by another debugger, or cannot be reached.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _FREED_S
    while True:
        try:
            return await GdbClient.connect(place.address, was_running=was_running)
        except GdbstubBusy:
            if loop.time() >= until:
                raise
        await asyncio.sleep(_RETRY_S)


async def require_free_stub(monitor: Monitor, given: str | None) -> None:
    """This makes sure that no other debugger holds the stub, which stops the guest as well.

    Raises:
        GdbstubBusy: one does; says which.
    """
    address = await _owners_stub(monitor) if given is None else parse_socket_address(given)
    holders = [] if address is None else await asyncio.to_thread(clients_at, address)
    if holders:
        held = f"held by {', '.join(holders)}, which has stopped the guest; end that debugger"
        raise GdbstubBusy(str(address), held)


async def end_stub(monitor: Monitor, place: StubPlace) -> None:
    """This ends a stub that was started for us, and leaves the owner's own."""
    if place.folder is not None:
        try:
            await monitor.hmp("gdbserver none")
        finally:  # a QEMU that has ended needs its folder no more
            shutil.rmtree(place.folder, ignore_errors=True)


async def _owners_stub(monitor: Monitor) -> SocketAddress | None:
    """This is where the stub listens that QEMU has already."""
    try:
        answer = await monitor.execute("query-chardev")
    except QmpCommandFailed as error:
        raise UsageError(
            f"{monitor.target} does not tell where the machine's gdbstub is ({error.description});"
            " name it with --gdb; of a gateway that is its socket for gdb"
        ) from error
    try:
        devices = msgspec.convert(answer, tuple[_Device, ...])
    except msgspec.ValidationError as error:
        raise QmpProtocolError("query-chardev", str(error)) from error
    names = [device.filename for device in devices if device.label == _LABEL]
    if not names:
        return None
    match = _FILE_NAME.fullmatch(names[0])
    if match is None:
        raise UsageError(
            f"the machine's gdbstub is no socket but {names[0]!r}; name one with --gdb"
        )
    if match[1]:
        return UnixAddress(match[2])
    host = match[3].strip("[]")
    return TcpAddress("localhost" if host in _ANY_HOST else host, int(match[4]))


async def _start(monitor: Monitor, announce: Callable[[Path | None], None]) -> StubPlace:
    """This starts a stub on a Unix socket in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="qvmi-gdb-"))
    address = UnixAddress(os.fspath(folder / "stub"))
    try:
        announce(folder)
        said = await _said(monitor, f"gdbserver unix:{address},server=on,wait=off")
        if _is_there(address):
            return StubPlace(address, folder)
    except BaseException:
        _take_back(folder, announce)
        raise
    _take_back(folder, announce)
    raise UsageError(
        f"QEMU starts no gdbstub on {address}: {' '.join(said.split())}; start QEMU with"
        " -gdb unix:PATH,server=on,wait=off and name it with --gdb PATH"
    )


def _take_back(folder: Path, announce: Callable[[Path | None], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    announce(None)


async def _said(monitor: Monitor, line: str) -> str:
    """This is what the human monitor says to a line, be it a refusal."""
    try:
        return await monitor.hmp(line)
    except QmpCommandFailed as error:
        return error.description


def _is_there(address: UnixAddress) -> bool:
    return Path(address.path).exists()
