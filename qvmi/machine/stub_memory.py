"""Guest memory by the gdbstub, for which the guest stands still.

Whoever connects to a gdbstub stops the guest. So it is read within pauses alone, which stop the guest
first, under the eyes of the guardian, and let it run last: the stub is left without letting it run,
and a guest that its owner had paused is not disturbed. Outside of any pause a read begins one of its
own, which ends when no other read has followed for a while.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa
from qvmi.errors import QvmiError
from qvmi.gdbstub.client import GdbClient
from qvmi.gdbstub.packets import detach_request
from qvmi.machine.completion import ended, to_the_end
from qvmi.machine.pause import RunControl
from qvmi.machine.stub_place import StubPlace, connect_stub, end_stub, find_stub
from qvmi.qmp.monitor import Monitor

__all__ = ["StubMemory"]

_LINGERS_S: Final = 0.005
"""How long the guest stands still for another read to follow: to stop it anew takes about as long."""
_BLOCK: Final = 4 * PAGE_SIZE
"""Read at once: half of it is as fast as a page, and slabs and page tables lie side by side."""

Work = Callable[[GdbClient], Awaitable[bytes]]


class StubMemory:
    """This is memory as the gdbstub tells it.

    Args:
        monitor: the conversation with QEMU.
        run_control: stops the guest and lets it run.
        gdb: the address of the gdbstub; None to find or start one.
    """

    stops_guest = True
    block = _BLOCK

    def __init__(self, monitor: Monitor, run_control: RunControl, gdb: str | None) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._gdb = gdb
        self._lock = asyncio.Lock()
        self._client: GdbClient | None = None
        self._place: StubPlace | None = None
        self._lingering: asyncio.Task[None] | None = None
        self._readers = 0
        self._last_read = 0.0
        self._name = gdb or "of the machine"

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read."""
        return f"the gdbstub {self._name}, for which the guest stands still"

    async def fetch(self, pa: Pa, size: int) -> bytes:
        """This asks for exactly so many bytes, all of them RAM.

        Raises:
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            PauseError: the guest cannot be stopped safely.
            MachineGone, QmpTimeout, GdbstubTimeout: QEMU did not answer.
            GuestRunning: somebody else has let the guest run meanwhile.
        """
        if self._run_control.pause is None and (self._lingering is None or self._lingering.done()):
            self._lingering = asyncio.create_task(self._linger(), name="qvmi stub")
        self._readers += 1
        try:
            async with self._run_control.paused():
                return await self._standing(lambda client: client.read_physical(pa, size))
        finally:
            self._readers -= 1
            self._last_read = asyncio.get_running_loop().time()

    async def let_go(self) -> None:
        """This ends a pause that no reader wants any more."""
        lingering = self._lingering
        if lingering is not None:
            lingering.cancel()
            cancelled = await ended(lingering)
            if cancelled is not None:
                raise cancelled

    async def end_still(self) -> None:
        """This leaves the stub; the guest goes on to stand still."""
        await to_the_end(self._leave())

    def close(self) -> None:
        """This has nothing to remove: the stub was left with the last pause."""

    async def _standing(self, work: Work) -> bytes:
        """This does something with whoever holds the stub while the guest stands still."""
        if self._run_control.debugger is not None:
            return await self._run_control.debugger.standing(work)
        async with self._lock:
            if self._client is None or self._client.ended:
                await to_the_end(self._take_hold())
            client = self._client
        assert client is not None  # noqa: S101 - taken hold of just now, and left within the lock alone
        return await work(client)

    async def _take_hold(self) -> None:
        guardian = await self._run_control.prepare()
        place = await find_stub(self._monitor, self._gdb)
        try:
            client = await connect_stub(place, was_running=False)
        except BaseException:
            with suppress(QvmiError):
                await end_stub(self._monitor, place)
            raise
        self._client, self._place, self._name = client, place, f"at {place.address}"
        detach = detach_request(client.process).decode()
        guardian.hold_stub(client.descriptor, detach, place.folder)

    async def _leave(self) -> None:
        async with self._lock:
            client, self._client = self._client, None
            place, self._place = self._place, None
        if client is None or place is None:
            return
        try:
            if not client.ended:
                await client.leave_stopped()
        finally:
            (await self._run_control.prepare()).drop_stub()
            await end_stub(self._monitor, place)

    async def _linger(self) -> None:
        """This keeps the guest from running until no read follows any more."""
        loop = asyncio.get_running_loop()
        # What is wrong with the pause is told to whoever reads, or asks for the run state.
        with suppress(QvmiError):
            async with self._run_control.paused():
                # Each read moves the end, and thousands of them follow each other.
                while self._readers or loop.time() < self._last_read + _LINGERS_S:  # noqa: ASYNC110
                    await asyncio.sleep(_LINGERS_S)
