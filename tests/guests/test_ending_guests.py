"""Machines that end or begin anew while they are looked at: no hang, and never an answer of before."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import pytest

import qvmi
from qvmi import MachineGone, QvmiError, StaleView
from qvmi.errors import AttachError, MemoryFault, UnknownGuest, WalkFailed
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree
from tests.guests.lab import Guest, GuestConfig, LabError
from tests.guests.pool import GuestPool
from tests.proofs import proof_size

BOOT_S: Final = 240.0
"""As long as the lab gives a guest to boot."""
NOTICED_S: Final = 60.0
"""QEMU's end is known at once; only a hang takes so long."""


def _power_off(guest: Guest) -> None:
    guest.ask("power off")
    if not guest.wait_for_end(NOTICED_S):
        raise LabError("the guest did not power off")


ENDS: Final[dict[str, Callable[[Guest], None]]] = {
    "powers-off": _power_off,
    "is-killed": Guest.kill,
}


@pytest.mark.parametrize("ram", ["file", "private"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@asynchronous
async def test_a_guest_that_ends_in_mid_walk_is_gone(
    guests: GuestPool, profiles: Path, end: Callable[[Guest], None], ram: Literal["file", "private"]
) -> None:
    guest = guests.restore(GuestConfig("6.1", ram=ram))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        least = len(machine.guest.processes()) // 2
        ending = asyncio.create_task(asyncio.to_thread(end, guest))
        async with asyncio.timeout(NOTICED_S):
            errors = await _walk_to_the_end(machine, least)
            await ending
        assert {type(error) for error in errors} <= {WalkFailed, MemoryFault}
        with pytest.raises(MachineGone):
            machine.guest.processes()
        with pytest.raises(MachineGone):
            await machine.refresh()


async def _walk_to_the_end(machine: qvmi.Machine, least: int) -> list[QvmiError]:
    """This looks until the machine is gone; it returns what else went wrong before.

    Nothing is asked of QEMU meanwhile: the end of the session is what tells.
    """
    errors: list[QvmiError] = []
    while True:
        await asyncio.sleep(0)
        try:
            linux = machine.guest
            listing = linux.processes()
            assert len(listing) > least or listing.gaps
            linux.threads()
            linux.modules()
        except MachineGone:
            return errors
        except QvmiError as error:
            errors.append(error)


@asynchronous
async def test_what_was_understood_before_the_end_answers_no_more(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        linux = machine.guest
        guest.kill()
        with pytest.raises(MachineGone):
            await machine.registers()
        for look in (linux.processes, linux.process_ids, linux.threads, linux.modules):
            with pytest.raises(MachineGone):
                look()


@asynchronous
async def test_a_guest_that_is_killed_during_an_attach_is_gone(guests: GuestPool) -> None:
    """The kill comes at another moment each time, from before the greeting to behind the attach."""
    rounds = proof_size(ci=8, full=40)
    for number in range(rounds):
        guest = guests.restore(GuestConfig("6.1"))
        attaching = asyncio.create_task(_attach_and_list(guest))
        await asyncio.sleep(0.2 * number / rounds)
        guest.kill()
        async with asyncio.timeout(NOTICED_S):
            error = await attaching
        assert error is None or isinstance(error, AttachError | MachineGone | UnknownGuest), error
        guest.close()


async def _attach_and_list(guest: Guest) -> QvmiError | None:
    try:
        async with qvmi.attach(guest.qmp, use_cache=False) as machine:
            machine.guest.processes()
    except QvmiError as error:
        return error
    return None


@pytest.mark.timeout(2 * BOOT_S)
@asynchronous
async def test_after_a_reset_the_new_system_is_found_and_the_old_is_stale(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    guest.monitor.execute("set-action", reboot="reset")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        before, linux = machine.epoch, machine.guest
        guest.monitor.execute("system_reset")
        await _until_reset(machine, before)
        for look in (lambda: machine.guest, linux.processes, linux.threads, linux.modules):
            with pytest.raises(StaleView, match="refresh"):
                look()
        deadline = time.monotonic() + BOOT_S
        await asyncio.to_thread(guest.control.wait_until_ready, deadline=deadline)
        await machine.refresh()
        assert machine.guest.processes().provenance.epoch > before
        assert_processes_agree(guest, machine.guest.processes)


async def _until_reset(machine: qvmi.Machine, before: int) -> None:
    async with asyncio.timeout(NOTICED_S):
        while machine.epoch == before:
            await machine.run_state()
