"""Gives gdb a machine: a socket of its own that leads to the gdbstub, and the names of the guest.

gdb never holds the gdbstub itself. So that a guest that ran goes on to run, whoever is killed: when gdb is,
the host takes the stub back; when this process is, the guardian does.
"""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from qvmi.bus import lifeline
from qvmi.errors import GdbstubBusy, PauseError, QmpCommandFailed, QvmiError, UsageError
from qvmi.gdbstub.client import GdbClient
from qvmi.gdbstub.gate import Gate
from qvmi.gdbstub.gdb_program import ending_with_parent, gdb_command
from qvmi.gdbstub.gdb_session import GdbSession
from qvmi.gdbstub.packets import detach_request
from qvmi.gdbstub.relay import relay
from qvmi.machine.completion import to_the_end
from qvmi.machine.holding.debugger import Work
from qvmi.machine.holding.guardian_process import leave
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_place import StubPlace, end_stub, find_stub, require_free_stub
from qvmi.machine.worker import in_worker
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.linux.debug_symbols import DebugSymbols, debug_symbols
from qvmi.semantics.linux.guest import LinuxGuest

__all__ = ["GdbHost", "GdbPlace"]

Result = TypeVar("Result")

_LIFELINE: Final = Path(lifeline.__file__)
_SOCKET: Final = "stub"
_ARCHITECTURE: Final = "x86_64"
"""As QEMU calls it. The names, the unwind tables and the gate know no other."""
_SYMBOLS: Final = "guest-symbols"
_STOPPED: Final = frozenset({"paused", "debug"})
"""What QEMU calls a machine that can go on."""


@dataclass(slots=True)
class GdbPlace:
    """This is what a gdb is started with.

    Args:
        socket: what it connects to; a second connection waits for the end of the first.
        symbols: the file of the guest's names; None where there are none.
        missing: what is not in that file, and why; in words.

    Attributes:
        failure: why the last gdb that connected could not be given the guest.
    """

    socket: Path
    symbols: Path | None
    missing: tuple[str, ...]
    failure: QvmiError | None = None

    def command(self, arguments: Sequence[str] = (), *, init: bool = True) -> list[str]:
        """This starts a gdb that ends when this process does.

        Args:
            arguments: more of gdb's own.
            init: whether the user's own ``.gdbinit`` is read.

        Raises:
            UsageError: there is no gdb; says what to install.
        """
        command = gdb_command(self.socket, self.symbols, arguments=arguments, init=init)
        return ending_with_parent(_LIFELINE, command)


class GdbHost:
    """This is how one machine is given to gdb.

    Args:
        monitor: the conversation with QEMU.
        run_control: who else would stop the guest.
        gdb: the address of the gdbstub that the user named; None to find or start one.
        guest: gives the system that runs, or raises why it is not known.
        may_write: lets gdb write registers and memory, and use QEMU's monitor.
    """

    def __init__(
        self,
        monitor: Monitor,
        run_control: RunControl,
        gdb: str | None,
        guest: Callable[[], LinuxGuest],
        *,
        may_write: bool,
    ) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._gdb = gdb
        self._guest = guest
        self._may_write = may_write

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[GdbPlace]:
        """This lets gdb connect for as long as the block lasts; nobody else stops the guest meanwhile.

        Raises:
            PauseError: the guest is stopped by a pause of this process.
            AttachError: another debugger holds the gdbstub.
            UsageError: QEMU starts no gdbstub, or the guest is not of x86-64.
            SymbolsError: the guest's tables of names contradict themselves.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        architecture = await commands.architecture(self._monitor)
        if architecture != _ARCHITECTURE:
            raise UsageError(
                f"gdb is given {_ARCHITECTURE} guests so far; this one is {architecture}"
            )
        symbols, missing = await self._symbols()
        async with self._taken() as stub:
            with ExitStack() as stack:
                guardian = await self._run_control.prepare()
                folder = Path(tempfile.mkdtemp(prefix="qvmi-gdb-"))
                stack.callback(guardian.forget, folder)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                guardian.keep(folder)
                file = _written(folder, symbols)
                place = GdbPlace(folder / _SOCKET, file, missing)
                server = stack.enter_context(_listening(place.socket))
                serving = asyncio.create_task(
                    self._serve(server, stub, place), name="qvmi gdb host"
                )
                try:
                    yield place
                finally:
                    serving.cancel()
                    await to_the_end(_ended(serving))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[GdbSession]:
        """This is a gdb that takes commands for as long as the block lasts.

        Raises:
            GdbError: gdb does not start.
            QvmiError: gdb could not be given the guest; see :meth:`opened`.
        """
        async with (
            self.opened() as place,
            await GdbSession.start(place.command(init=False), missing=place.missing) as session,
        ):
            if place.failure is not None:
                raise place.failure
            yield session

    async def run(self, arguments: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """This runs gdb on the terminal, or whatever else this process has got, and waits for its end.

        Args:
            arguments: more of gdb's own.

        Returns:
            gdb's exit code, below zero where a signal ended it, and what is missing of the symbols.

        Raises:
            QvmiError: gdb could not be given the guest; see :meth:`opened`.
        """
        async with self.opened() as place:
            process = await asyncio.create_subprocess_exec(*place.command(arguments))
            try:
                code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if place.failure is not None:
                raise place.failure
            return code, place.missing

    async def _symbols(self) -> tuple[DebugSymbols | None, tuple[str, ...]]:
        """This is the file of names, and what is missing in it."""
        try:
            guest = self._guest()
        except QvmiError as error:
            return None, (f"no symbols: {error}",)
        symbols = await in_worker(partial(debug_symbols, guest))
        return symbols, tuple(f"{gap.structure}: {gap.reason}" for gap in symbols.gaps)

    @asynccontextmanager
    async def _taken(self) -> AsyncIterator[StubPlace]:
        """This keeps everybody else of this process from the guest, and finds or starts its gdbstub."""
        control = self._run_control
        if control.pause is not None:
            raise PauseError("gdb within paused() would wait for ever")
        async with control.exclusively():
            if control.debugger is not None:
                raise GdbstubBusy(self._monitor.target, "breakpoints of this very process hold it")
            if not (await commands.run_state(self._monitor)).running:
                await require_free_stub(self._monitor, self._gdb)
            guardian = await control.prepare()
            stub = await find_stub(self._monitor, self._gdb, guardian.note_folder)
            control.debugger = _GdbHolds()
        try:
            yield stub
        finally:
            await to_the_end(self._give_back(stub))

    async def _give_back(self, stub: StubPlace) -> None:
        self._run_control.debugger = None
        with suppress(QvmiError):
            await end_stub(self._monitor, stub)
        with suppress(QvmiError):
            (await self._run_control.prepare()).note_folder(None)

    async def _serve(self, server: socket.socket, stub: StubPlace, place: GdbPlace) -> None:
        """This serves one gdb after the other."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(server)
            with connection:
                connection.settimeout(0)
                place.failure = None
                try:
                    await self._connect(connection, stub)
                except QvmiError as error:
                    place.failure = error

    async def _connect(self, connection: socket.socket, place: StubPlace) -> None:
        """This gives one gdb the guest until it lets go, or is gone."""
        guardian = await self._run_control.prepare()
        was_running = (await commands.run_state(self._monitor)).running
        guardian.note_stopped(stopped=was_running)
        stub: socket.socket | None = None
        detach = ""
        try:
            client = await GdbClient.connect(place.address, was_running=was_running)
            detach = detach_request(client.process).decode()
            guardian.hold_stub(client.descriptor, detach, place.folder)
            stub = await client.hand_over()
            with suppress(OSError):  # one of them has gone, which is told by what follows
                await relay(connection, stub, Gate(may_write=self._may_write))
        finally:
            await to_the_end(self._let_go(stub, place, detach if was_running else ""))

    async def _let_go(self, stub: socket.socket | None, place: StubPlace, detach: str) -> None:
        """This leaves no breakpoint, and the guest as it was found."""
        guardian = await self._run_control.prepare()
        if stub is not None:
            with stub, suppress(OSError):
                await asyncio.to_thread(leave, stub, detach)
        guardian.drop_stub()
        guardian.note_folder(place.folder)
        if guardian.stopped:
            status = await commands.run_state(self._monitor)
            if not status.running and status.status in _STOPPED:
                with suppress(QmpCommandFailed):  # another client of a gateway holds it
                    await commands.cont(self._monitor)
            guardian.note_stopped(stopped=False)


class _GdbHolds:
    """This tells whoever wants to stop the guest that gdb has it."""

    def still(self) -> AbstractAsyncContextManager[None]:
        raise _gdb_has_it()

    async def standing(self, work: Work[Result]) -> Result:  # noqa: ARG002 - of whoever holds the stub
        raise _gdb_has_it()


def _gdb_has_it() -> PauseError:
    return PauseError("gdb has the guest, and may let it run at any moment: end it first")


def _written(folder: Path, symbols: DebugSymbols | None) -> Path | None:
    if symbols is None:
        return None
    file = folder / _SYMBOLS
    try:
        file.write_bytes(symbols.elf)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; set TMPDIR") from error
    return file


def _listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(0)
    except OSError as error:
        server.close()
        raise UsageError(f"cannot listen on {path}: {error}; set TMPDIR") from error
    return server


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
