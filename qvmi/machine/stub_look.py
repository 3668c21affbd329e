"""A short look through the gdbstub at what nothing else tells, for which the guest stands still."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from qvmi.arch.registers import Registers
from qvmi.errors import PauseError, QvmiError
from qvmi.gdbstub.client import GdbClient
from qvmi.machine.completion import to_the_end
from qvmi.machine.pause import RunControl
from qvmi.machine.stub_place import StubPlace, end_stub, find_stub, require_free_stub
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

__all__ = ["StubLook", "let_run", "look_by_stub", "registers_of"]

Found = TypeVar("Found")
Look = Callable[[GdbClient], Awaitable[Found]]


@dataclass(frozen=True, slots=True)
class StubLook(Generic[Found]):
    """This is what a look has found.

    Args:
        found: what it returned.
        at: when the guest was stopped for it, in seconds since the Unix epoch.
        pause_s: for how long the guest stood still, in seconds; 0.0 for one that did anyway.
    """

    found: Found
    at: float
    pause_s: float


async def look_by_stub(
    monitor: Monitor, run_control: RunControl, gdb: str | None, look: Look[Found]
) -> StubLook[Found]:
    """This does something through the gdbstub, and leaves the guest as it was, whatever happens.

    Args:
        monitor: the conversation with QEMU.
        run_control: keeps others from stopping the guest meanwhile; its guardian lets it run.
        gdb: the address of the gdbstub; None to find QEMU's own, or to start one.
        look: what is done while the guest stands still; it must insert no breakpoint.

    Raises:
        PauseError: a pause goes on, or there is no guardian.
        AttachError: the gdbstub is held by another debugger, or cannot be reached.
        UsageError: QEMU starts no gdbstub.
        MachineGone, GdbstubTimeout, GdbstubProtocolError: QEMU did not answer.
    """
    at, began = time.time(), time.monotonic()
    if run_control.debugger is not None:
        found = await run_control.debugger.standing(look)
        return StubLook(found, at, time.monotonic() - began)
    if run_control.pause is not None:
        raise PauseError("the gdbstub would let the guest run within paused(): ask before")
    async with run_control.exclusively():
        return await to_the_end(_look(monitor, run_control, gdb, look))


async def _look(
    monitor: Monitor, run_control: RunControl, gdb: str | None, look: Look[Found]
) -> StubLook[Found]:
    guardian = await run_control.prepare()
    running = (await commands.run_state(monitor)).running
    if not running:
        await require_free_stub(monitor, gdb)
    place = await find_stub(monitor, gdb, guardian.expect_stub)
    at, began = time.time(), time.monotonic()
    guardian.note_stopped(stopped=running)
    try:
        client = await GdbClient.connect(place.address, was_running=running)
        # It is not handed to the guardian: nothing is inserted, so that a guest whose debugger is
        # killed runs on by QMP alone.
        async with client:
            found = await look(client)
    finally:
        await let_run(monitor, run_control, place, was_running=running)
    return StubLook(found, at, time.monotonic() - began if running else 0.0)


async def let_run(
    monitor: Monitor, run_control: RunControl, place: StubPlace, *, was_running: bool = True
) -> None:
    """This ends what was begun for a debugger, and makes sure that a guest that ran runs."""
    guardian = await run_control.prepare()
    guardian.leave_stub()
    with suppress(QvmiError):
        await end_stub(monitor, place)
    guardian.drop_stub()  # only now: if we die before, the stub is its to end
    if was_running:
        status = await commands.run_state(monitor)
        if not status.running and status.status in {"paused", "debug"}:
            await commands.cont(monitor)
    guardian.note_stopped(stopped=False)


async def registers_of(client: GdbClient) -> tuple[Registers, ...]:
    """These are the registers of all vCPUs, with the system registers that there are."""
    return await client.registers.vcpus()
