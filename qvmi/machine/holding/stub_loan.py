"""The gdbstub for the length of a pause, lent to everyone who reads or writes by way of it.

Whoever connects to a gdbstub stops the guest. So it is lent within pauses alone, which stop the guest
first, under the eyes of the guardian, and let it run last: the stub is left without letting it run,
and a guest that its owner had paused is not disturbed.
"""

import asyncio
from contextlib import suppress
from typing import Final, TypeVar

from qvmi.errors import QvmiError
from qvmi.gdbstub.client import GdbClient
from qvmi.gdbstub.packets import detach_request
from qvmi.host.peer import clients_at
from qvmi.machine.completion import to_the_end
from qvmi.machine.holding.debugger import Work
from qvmi.machine.holding.guardian import Guardian
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_place import StubPlace, connect_stub, end_stub, find_stub
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

__all__ = ["StubLoan"]

Result = TypeVar("Result")

_FREE_TRIES: Final = 200
_FREE_POLL_S: Final = 0.005
"""QEMU sees the end of a connection at its next turn; it has a second for that."""


class StubLoan:
    """This lends one machine's gdbstub.

    Who holds it for breakpoints takes hold of it, and lets go, only while no pause is on. So within a
    pause there is one such holder or none, and that does not change.

    Args:
        monitor: the conversation with QEMU.
        run_control: says who holds the stub already, and when a pause ends.
        gdb: the address of the gdbstub that the user named; None to find or start one.
    """

    def __init__(self, monitor: Monitor, run_control: RunControl, gdb: str | None) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._gdb = gdb
        self._lock = asyncio.Lock()
        self._client: GdbClient | None = None
        self._name = gdb or "of the machine"

    @property
    def name(self) -> str:
        """This is where the stub is, as far as that is known, in words."""
        return self._name

    async def do(self, work: Work[Result]) -> Result:
        """This does something by way of the stub; the caller has paused the guest.

        The stub stays ours until the pause ends: what follows in the same pause begins at once.

        Raises:
            AttachError: the stub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            StaleView: the pause has ended.
            MachineGone, QmpTimeout, GdbstubTimeout: QEMU did not answer.
            QvmiError: what the work raised.
        """
        if self._run_control.debugger is not None:
            return await self._run_control.debugger.standing(work)
        async with self._lock:
            client = self._client
            if client is None or client.ended:
                client = await to_the_end(self._take_hold())
        return await work(client)

    async def _take_hold(self) -> GdbClient:
        pause = self._run_control.require_pause()
        guardian = await self._run_control.prepare()
        resumes = self._resumes()
        place = await find_stub(self._monitor, self._gdb, guardian.note_folder)
        try:
            client = await connect_stub(place, was_running=False)
        except BaseException:
            await self._end(guardian, place, resumes)
            raise
        self._client = client
        pause.ending.push_async_callback(self._leave, client, place, resumes)
        self._name = f"at {place.address}"
        detach = detach_request(client.process).decode()
        guardian.hold_stub(client.descriptor, detach, place.folder)
        return client

    async def _leave(self, client: GdbClient, place: StubPlace, resumes: int) -> None:
        """This leaves the stub, and the guest as it stands."""
        async with self._lock:
            self._client = None
        guardian = await self._run_control.prepare()
        try:
            if not client.ended:
                await client.leave_stopped()
        finally:
            await self._end(guardian, place, resumes)

    async def _end(self, guardian: Guardian, place: StubPlace, resumes: int) -> None:
        with suppress(QvmiError):  # a stub that is left behind harms nobody
            await end_stub(self._monitor, place)
        guardian.drop_stub()
        with suppress(QvmiError):  # whoever holds the pause learns it too
            status = await commands.run_state(self._monitor)
            # Who asks a stub stops the guest, also one that somebody else has just let run.
            if not status.running and self._resumes() != resumes:
                await commands.cont(self._monitor)
        if place.folder is None:
            await self._wait_until_free(place)

    def _resumes(self) -> int:
        return self._monitor.run_state_events.get("RESUME", 0)

    async def _wait_until_free(self, place: StubPlace) -> None:
        """This waits until QEMU has seen our end, lest the next one in line find its stub busy."""
        for _ in range(_FREE_TRIES):
            if not await asyncio.to_thread(clients_at, place.address):
                return
            await asyncio.sleep(_FREE_POLL_S)
