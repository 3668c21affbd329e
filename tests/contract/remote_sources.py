"""The sources that have to be asked for, over a real QEMU whose memory holds what a test wants.

The test writes into the RAM file; the subject never sees that, and asks QEMU.
"""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from qvmi.addr import Pa, PaRange
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_loan import StubLoan
from qvmi.machine.stub_memory import StubMemory
from qvmi.machine.ways.monitor_memory import PrintedMemory, SavedMemory
from qvmi.machine.ways.remote_memory import Conversation, RemoteMemory
from qvmi.qmp.open import open_monitor
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.stub_machines import stub_of

__all__ = ["REMOTE_SOURCES", "RemoteHost", "remote_sources"]

REMOTE_SOURCES: Final = ("pmemsave", "monitor", "gdbstub")
_MEMORY_MIB: Final = 64

Result = TypeVar("Result")


class RemoteHost:
    """This is a QEMU, a session with it, and the event loop that the session lives on."""

    def __init__(self, machine: BareQemu, ram: Path, run: "Run") -> None:
        self._ram = ram
        self._run = run
        self._stub = stub_of(machine)
        self._monitor = run(open_monitor(machine.qmp))
        self._still = AsyncExitStack()

    def memory(self, source: str, runs: Mapping[int, bytes], *, still: bool) -> RemoteMemory:
        """This is a source of which nothing but these bytes is RAM."""
        with self._ram.open("r+b") as ram:
            for start, data in runs.items():
                ram.seek(start)
                ram.write(data)
        made: RemoteMemory = self._run(self._made(source, runs, still=still))
        return made

    def close(self) -> None:
        """This ends the session."""
        self._run(self._still.aclose())
        self._run(self._monitor.close())

    async def _made(self, source: str, runs: Mapping[int, bytes], *, still: bool) -> RemoteMemory:
        await self._still.aclose()
        control = RunControl(self._monitor)
        self._still.push_async_callback(control.close)
        conversations: dict[str, Callable[[], Conversation]] = {
            "pmemsave": lambda: SavedMemory(self._monitor, next(SavedMemory.bases())),
            "monitor": lambda: PrintedMemory(self._monitor),
            "gdbstub": lambda: StubMemory(control, StubLoan(self._monitor, control, self._stub)),
        }
        ranges = [PaRange(Pa(start), Pa(start + len(data))) for start, data in runs.items()]
        memory = control.reader = RemoteMemory(ranges, conversations[source]())
        self._still.push_async_callback(memory.let_go)
        if still:
            await self._still.enter_async_context(control.paused())
        return memory


Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the session's event loop, and waits for it."""


@contextmanager
def remote_sources() -> Iterator[RemoteHost]:
    """This starts a QEMU whose vCPU waits for ever, and an event loop in a thread."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("there is no qemu-system-x86_64")
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        ram = Path(folder) / "ram"
        backend = f"memory-backend-file,id=ram,size={_MEMORY_MIB}M,mem-path={ram},share=on"
        machine = ("-machine", "q35,memory-backend=ram", "-m", str(_MEMORY_MIB), "-S")
        with bare_qemu("-object", backend, *machine) as qemu, _loop_in_thread() as run:
            host = RemoteHost(qemu, ram, run)
            try:
                yield host
            finally:
                host.close()


@contextmanager
def _loop_in_thread() -> Iterator[Run]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
