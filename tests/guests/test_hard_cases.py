"""Machines in which no system runs yet, or that stand still: a right answer or a clear refusal."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Process, UnknownGuest
from qvmi.errors import QmpBusy
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree, at_rest, shown_name, start_ticks
from tests.guests.lab import KERNELS, Guest, GuestConfig, Truth
from tests.guests.pool import GuestPool

BOOT_S: Final = 240.0
"""Emulation boots in 5 to 11 s on two idle cores; a loaded machine may be many times slower."""
PARENT_NAMES: Final = ("swapper/0", "kthreadd")
"""A kernel thread begins as a copy of one of these, and gets its own name a moment later."""
REFUSED_S: Final = 3.0
"""A client that waits longer than this for a socket that another one holds is a hang to its user."""


@asynchronous
async def test_firmware_only_is_an_unknown_guest(guests: GuestPool) -> None:
    guest = guests.boot(GuestConfig(kernel=None), until="started")
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        with pytest.raises(UnknownGuest, match="no Linux kernel found") as caught:
            machine.guest.processes()
        assert (await machine.facts()).vcpus == guest.config.cpus
    assert len(caught.value.evidence) == guest.config.cpus
    assert all(line.startswith("vCPU ") for line in caught.value.evidence)
    assert guest.monitor.running()


@pytest.mark.timeout(2 * BOOT_S)
@pytest.mark.parametrize("kernel", KERNELS)
@asynchronous
async def test_early_boot_is_answered_or_refused(
    guests: GuestPool, kernel: str, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.boot(GuestConfig(kernel), until="started")
    ready = asyncio.create_task(asyncio.to_thread(_wait_until_ready, guest))
    answers: list[tuple[str, tuple[Process, ...]]] = []
    refusals: list[UnknownGuest] = []
    while not ready.done():
        known = bool(len(answers) % 2)
        async with qvmi.attach(guest.qmp, cache=profiles, use_cache=known) as machine:
            try:
                linux = machine.guest
            except UnknownGuest as refusal:
                refusals.append(refusal)
            else:
                answers.append((linux.facts().release, linux.processes().items))
    await ready
    assert refusals
    assert all(refusal.evidence for refusal in refusals)
    truth = guest.settled_truth()
    assert {release for release, _ in answers} == {truth.release}
    assert not [wrong for _, rows in answers for wrong in _never_true(rows, truth)]
    proof_count(len(answers) + len(refusals))


def _wait_until_ready(guest: Guest) -> None:
    guest.control.wait_until_ready(deadline=time.monotonic() + BOOT_S)


def _never_true(rows: tuple[Process, ...], truth: Truth) -> Iterator[str]:
    """These are early rows that contradict what is known of the same tasks later."""
    pids = [row.pid for row in rows]
    yield from (f"{pid} is listed twice" for pid in set(pids) if pids.count(pid) > 1)
    later = {task.identity: task for task in truth.processes}
    for row in rows:
        task = later.get((row.pid, row.tgid, start_ticks(row, truth.clock_ticks)))
        if task is None or not task.kernel_thread:
            continue  # it has ended, or may have given itself another name and user since
        names = {shown_name(task.name[:15]), *PARENT_NAMES}
        seen = (row.ppid, row.uid, row.gid, row.kernel_thread)
        if seen != (task.ppid, task.uid, task.gid, True) or row.name not in names:
            yield f"{row} is {task}"


@asynchronous
async def test_a_machine_that_was_never_started_stays_so(guests: GuestPool) -> None:
    guest = guests.boot(GuestConfig("6.1"), until="started", paused=True)
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        with pytest.raises(UnknownGuest):
            machine.guest.processes()
        assert (await machine.facts()).run_state == "prelaunch"
    assert guest.monitor.execute("query-status")["status"] == "prelaunch"


@pytest.fixture(params=["running", "paused"])
def run_state(guest: Guest, request: pytest.FixtureRequest) -> Iterator[str]:
    """This is what the guest's owner has set it to; it is the owner's again afterwards."""
    if request.param == "paused":
        guest.monitor.execute("stop")
    guest.monitor.execute("query-status")
    guest.monitor.events.clear()
    yield request.param
    guest.monitor.execute("cont")


@asynchronous
async def test_no_look_changes_the_run_state(guest: Guest, run_state: str) -> None:
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        linux = machine.guest
        for look in (linux.facts, linux.processes, linux.process_ids, linux.threads, linux.modules):
            look()
        await machine.registers()
        await machine.refresh()
        assert (await machine.facts()).run_state == run_state
    assert guest.monitor.execute("query-status")["status"] == run_state
    assert not guest.monitor.events


@asynchronous
async def test_a_paused_guest_is_listed_as_it_stands(guest: Guest, profiles: Path) -> None:
    truth = guest.settled_truth()
    guest.monitor.execute("stop")
    try:
        async with qvmi.attach(guest.qmp, cache=profiles) as machine:
            listing = machine.guest.processes()
            assert machine.guest.processes().items == listing.items
    finally:
        guest.monitor.execute("cont")
    users = {t.identity for t in truth.processes if not t.kernel_thread and t.pid > 1}
    rested = at_rest(listing)
    assert {(r.pid, r.tgid, start_ticks(r, truth.clock_ticks)) for r in rested} == users


@asynchronous
async def test_a_second_attach_is_refused_as_busy(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        with pytest.raises(QmpBusy, match="serves one client at a time"):
            async with asyncio.timeout(REFUSED_S), qvmi.attach(guest.qmp, cache=profiles):
                pass
        await machine.registers()
        assert_processes_agree(guest, machine.guest.processes)
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        assert machine.guest.processes()
