"""QMP through ``virsh qemu-monitor-command``, for machines whose monitor libvirt holds.

References: virsh(1); libvirt ``src/qemu/qemu_driver.c`` (``qemuDomainQemuMonitorCommand``).

Each command is a process of its own (some 20 ms), and there are no events: whoever must know at
once that a guest was reset gives QEMU a second socket.
"""

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Never, Self

import msgspec

from qvmi.errors import (
    MachineGone,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    QvmiError,
    SocketUnreachable,
    UsageError,
)
from qvmi.host.host_process import host_process, pids
from qvmi.qmp.address import LibvirtAddress
from qvmi.qmp.client import MAX_MESSAGE, Reply, result_of
from qvmi.qmp.command_line import parse_command_line
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    NO_ARGUMENTS,
    Monitor,
    QemuVersion,
    parse_version,
)

__all__ = ["LibvirtSession"]

# Each command starts a process; as many at once as keep a host of a few cores busy.
_MAX_PROCESSES: Final = 4
_MAX_COMPLAINT: Final = 64 << 10  # bytes of virsh's standard error
_CHUNK: Final = 64 << 10
_END_S: Final = 1.0
# What virsh says (LC_ALL=C) when there is no machine to talk to any more.
_GONE: Final = ("domain is not running", "failed to get domain", "Domain not found")


class LibvirtSession(Monitor):
    """This is a conversation with QEMU through libvirt; only `connect` makes one."""

    def __init__(self, address: LibvirtAddress, version: QemuVersion) -> None:
        self._address = address
        self._version = version
        self._closed = False
        self._slots = asyncio.Semaphore(_MAX_PROCESSES)

    @classmethod
    async def connect(
        cls, address: LibvirtAddress, *, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> Self:
        """This makes sure that libvirt lets us talk to the domain.

        Raises:
            SocketUnreachable: there is no virsh, no libvirt, or no such running domain.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reply = await _ask(address, "query-version", NO_ARGUMENTS)
        except TimeoutError as error:
            reason = f"no answer from virsh within {timeout_s:g} s"
            raise SocketUnreachable(str(address), reason) from error
        except QvmiError as error:
            raise SocketUnreachable(str(address), str(error)) from error
        return cls(address, parse_version(result_of("query-version", reply)))

    @property
    def target(self) -> str:
        """This is the address, as errors name it."""
        return str(self._address)

    @property
    def version(self) -> QemuVersion:
        """This is QEMU's release."""
        return self._version

    @property
    def ended(self) -> bool:
        """This is False: each question is a conversation of its own."""
        return False

    @property
    def run_state_events(self) -> Mapping[str, int]:
        """This is empty: virsh gives no events."""
        return {}

    @property
    def cont_command(self) -> Sequence[str]:
        """This asks libvirt, as everything else does."""
        return ("virsh", *_arguments(self._address, '{"execute":"cont"}'))

    def events(self) -> Never:
        """This refuses: virsh gives no events."""
        raise UsageError(f"{self._address}: libvirt hands on no events; ask query-status instead")

    def peer_pid(self) -> int | None:
        """This is the QEMU process of the domain, found by its command line on this host.

        None where it was not named by its name, or runs under a libvirt on another host.
        """
        if self._address.uri is not None and not self._address.uri.startswith("qemu:///"):
            return None
        for pid in pids():
            process = host_process(pid)
            if process is not None and process.is_qemu:
                line = parse_command_line(process.arguments[1:])
                if line.libvirt and line.name == self._address.domain:
                    return pid
        return None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> object:
        """This runs a QMP command, as `Monitor.execute` says."""
        if self._closed:
            raise UsageError(f"{command}: {self._address} was closed")
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                reply = await _ask(self._address, command, arguments)
        except TimeoutError as error:
            raise QmpTimeout(command, timeout_s) from error
        return result_of(command, reply)

    async def close(self, *, keep_open: bool = False) -> None:  # noqa: ARG002 - nothing is open
        """This ends the session; the machine is left as it is."""
        self._closed = True


async def _ask(address: LibvirtAddress, command: str, arguments: Mapping[str, object]) -> Reply:
    try:
        request = msgspec.json.encode({"execute": command, "arguments": arguments}).decode()
    except TypeError as error:
        raise UsageError(f"{command}: arguments that JSON cannot hold: {error}") from error
    status, printed, complaint = await _virsh(address, command, request)
    if status != 0:
        said = " ".join(complaint.decode(errors="backslashreplace").split())
        if any(sign in said for sign in _GONE):
            raise MachineGone(f"{command}: {said}")
        raise QmpCommandFailed(command, "Libvirt", said or f"virsh ended with status {status}")
    try:
        return msgspec.json.decode(printed, type=Reply)
    except (ValueError, RecursionError) as error:
        raise QmpProtocolError(command, f"virsh printed {printed[:80]!r}: {error}") from error


async def _virsh(address: LibvirtAddress, command: str, request: str) -> tuple[int, bytes, bytes]:
    """This runs virsh to its end; it is killed when we are not interested any more."""
    arguments = _arguments(address, request)
    try:
        process = await asyncio.create_subprocess_exec(
            "virsh", *arguments, stdout=PIPE, stderr=PIPE, env=os.environ | {"LC_ALL": "C"}
        )
    except OSError as error:
        hint = "; install libvirt-clients" if isinstance(error, FileNotFoundError) else ""
        raise QmpCommandFailed(command, "Libvirt", f"virsh: {error.strerror}{hint}") from error
    try:
        async with concurrently() as group:
            printed = group.create_task(_read(process.stdout, MAX_MESSAGE, command))
            complaint = group.create_task(_read(process.stderr, _MAX_COMPLAINT, command))
        return await process.wait(), printed.result(), complaint.result()
    finally:
        if process.returncode is None:
            await _end(process)


def _arguments(address: LibvirtAddress, request: str) -> Sequence[str]:
    connect = ("--connect", address.uri) if address.uri else ()
    return (*connect, "--quiet", "qemu-monitor-command", "--domain", address.domain, request)


async def _end(process: Process) -> None:
    """This kills virsh and reads what is left in its pipes, which closes them."""
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(TimeoutError):  # a child of virsh may keep them open
        async with asyncio.timeout(_END_S):
            await process.communicate()


async def _read(stream: asyncio.StreamReader | None, limit: int, command: str) -> bytes:
    read = bytearray()
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        read += chunk
        if len(read) > limit:
            raise QmpProtocolError(command, f"virsh printed more than {limit} bytes")
    return bytes(read)
