"""Breakpoints tell what the guest does, and leave nothing behind, whatever happens to who set them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final

import pytest

import qvmi
from qvmi.errors import GdbstubBusy, MachineGone, PauseError, SymbolNotFound, UsageError
from qvmi.gdbstub.packets import BreakpointKind
from qvmi.machine.holding import breakpoints
from qvmi.machine.holding.breakpoints import Hit, HitStream
from qvmi.view import Taken
from tests.asynchronous import asynchronous, until
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import Guest, GuestConfig
from tests.guests.multiboot import COUNTING_LOOP
from tests.guests.pool import GuestPool
from tests.guests.stub_machines import counter, counting_machine

FORK: Final = "kernel_clone"
ENDS_S: Final = 30.0
POLL_S: Final = 0.005
COMMANDS: Final = 5


def stubs(guest: Guest | BareQemu) -> list[str]:
    """These are the gdbstubs that QEMU has, by its own account."""
    devices: list[dict[str, Any]] = guest.monitor.execute("query-chardev")
    return [device["filename"] for device in devices if device["label"] == "gdb"]


def forks(guest: Guest) -> int:
    """This is how many tasks the guest says it has ever made."""
    (line,) = (one for one in guest.run("cat /proc/stat").splitlines() if b"processes" in one)
    return int(line.split()[1])


async def take(hits: HitStream, count: int) -> list[Hit]:
    """These are the next hits."""
    async with asyncio.timeout(ENDS_S):
        return [await anext(hits) for _ in range(count)]


@pytest.fixture
def stormy(guest: Guest) -> Iterator[Guest]:
    guest.start_storm()
    yield guest
    guest.stop_storm()


# ---------------------------------------------------------------------------------------- what is told


@asynchronous
async def test_each_fork_is_a_hit_with_the_thread_that_forks(guest: Guest) -> None:
    at = guest.kallsyms().addresses.get(FORK)
    async with qvmi.attach(guest.qmp) as machine, machine.breakpoints(FORK) as hits:
        before = await asyncio.to_thread(forks, guest)
        seen = hits.hits
        for _ in range(COMMANDS):
            await asyncio.to_thread(guest.run, "true")
        after, told = await asyncio.to_thread(forks, guest), hits.hits
        found = await take(hits, told)
    # The fork of each `cat` is counted on one side of it and told on the other.
    assert abs((told - seen) - (after - before)) <= 2
    assert after - before >= COMMANDS
    assert hits.dropped == hits.refused == 0
    assert {hit.place for hit in found} == {FORK}
    assert at is None or {hit.address for hit in found} == {at}
    tasks = [hit.task for hit in found]
    assert all(task is not None and task.name and task.pid > 0 for task in tasks)
    assert guest.monitor.running()
    assert not stubs(guest)


@asynchronous
async def test_hits_come_from_every_vcpu_and_name_tasks_that_existed(stormy: Guest) -> None:
    async with qvmi.attach(stormy.qmp) as machine, machine.breakpoints(FORK) as hits:
        found = await take(hits, 30)
        assert {hit.vcpu for hit in found} <= {0, 1}
        assert {hit.registers.index == hit.vcpu for hit in found} == {True}
        names = {hit.task.name for hit in found if hit.task is not None}
        assert any(name.startswith("storm-") for name in names)


@asynchronous
async def test_a_condition_chooses_and_an_error_in_it_is_counted(stormy: Guest) -> None:
    def by_parent(hit: Hit) -> bool:
        return hit.task is not None and hit.task.name == "storm-parent"

    def wrong(_: Hit) -> bool:
        raise ZeroDivisionError

    async with qvmi.attach(stormy.qmp) as machine:
        async with machine.breakpoints(FORK, condition=by_parent) as hits:
            assert {hit.task.name for hit in await take(hits, 5) if hit.task} == {"storm-parent"}
        async with (
            machine.breakpoints(FORK, condition=wrong) as none,
            machine.breakpoints(FORK) as hits,
        ):
            await take(hits, 5)
            assert none.refused == none.hits > 0


@asynchronous
async def test_one_consumer_leaves_and_the_other_goes_on(stormy: Guest) -> None:
    async with qvmi.attach(stormy.qmp) as machine, AsyncExitStack() as stack:
        hits = await stack.enter_async_context(machine.breakpoints(FORK))
        async with machine.breakpoints(FORK) as same, machine.breakpoints("do_exit") as other:
            await asyncio.gather(take(hits, 3), take(same, 3), take(other, 3))
        assert len([hit async for hit in same]) <= same.hits - 3
        await take(hits, 3)


@asynchronous
async def test_a_slow_consumer_loses_the_oldest_hits_and_is_told(
    stormy: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakpoints, "MAX_WAITING_HITS", 4)
    async with qvmi.attach(stormy.qmp) as machine, machine.breakpoints(FORK) as slow:
        async with machine.breakpoints(FORK) as quick:
            for _ in range(12):
                await take(quick, 1)
        assert slow.dropped >= slow.hits - 4 - 1 > 0
        await take(slow, 4)


@asynchronous
async def test_a_watchpoint_tells_who_writes(stormy: Guest) -> None:
    async with (
        qvmi.attach(stormy.qmp) as machine,
        machine.breakpoints("total_forks", kind=BreakpointKind.WRITE, size=4) as hits,
    ):
        found = await take(hits, 5)
        around = [machine.guest.nearest(hit.address) for hit in found]
    assert {symbol.name for symbol in around if symbol} == {"copy_process"}


@asynchronous
async def test_a_pause_within_breakpoints_is_exact_and_the_hits_go_on(stormy: Guest) -> None:
    async with qvmi.attach(stormy.qmp) as machine, machine.breakpoints(FORK) as hits:
        for _ in range(5):
            async with machine.paused():
                assert not stormy.monitor.running()
                first = machine.guest.processes()
                assert first.items == machine.guest.processes().items
                assert first.provenance.taken is Taken.PAUSED
            listing = await machine.capture(lambda linux: linux.processes())
            assert listing.provenance.taken is Taken.CAPTURED
            await take(hits, hits.hits and 1)
        await take(hits, 1)
    assert stormy.monitor.running()


# ------------------------------------------------------------------------------------ what is refused


@asynchronous
async def test_where_it_would_wait_for_ever_a_breakpoint_is_refused(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp) as machine:
        async with machine.paused():
            with pytest.raises(PauseError, match=r"within paused\(\)"):
                await machine.breakpoints(FORK).__aenter__()
        guest.monitor.execute("stop")
        with pytest.raises(PauseError, match="paused by its owner"):
            await machine.breakpoints(FORK).__aenter__()
        assert not guest.monitor.running()
        guest.monitor.execute("cont")
        with pytest.raises(SymbolNotFound):
            await machine.breakpoints("no_such_function").__aenter__()
    assert not stubs(guest)


@asynchronous
async def test_the_owners_own_stub_is_used_and_stays() -> None:
    with bare_qemu("-gdb", "tcp:127.0.0.1:0,server=on,wait=off") as machine:
        owned = stubs(machine)
        async with (
            qvmi.attach(machine.qmp, discover=False) as attached,
            attached.breakpoints(qvmi.Va(0xFFFF0)),
        ):
            assert len(stubs(machine)) == 1
        assert stubs(machine) == owned
        assert machine.monitor.running()


@asynchronous
async def test_a_debugger_that_holds_the_stub_is_told_of() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            place = str(machine.folder / "stub")
            line = f"gdbserver unix:{place},server=on,wait=off"
            machine.monitor.execute("human-monitor-command", **{"command-line": line})
            reader, writer = await asyncio.open_unix_connection(place)
            writer.write(b"+$?#3f")
            assert await reader.readuntil(b"$T")
            began = time.monotonic()
            with pytest.raises(GdbstubBusy, match="held by"):
                await attached.breakpoints(qvmi.Va(0xFFFF0)).__aenter__()
            assert time.monotonic() - began < 3 * ENDS_S
            writer.close()


@asynchronous
async def test_a_machine_that_is_closed_ends_the_stream_and_the_guest_runs() -> None:
    with counting_machine() as machine:
        for turn in range(10):

            async def wait_for_hits(attached: qvmi.Machine) -> None:
                async with attached.breakpoints(qvmi.Va(COUNTING_LOOP)) as hits:
                    async for _ in hits:
                        pass

            async with qvmi.attach(machine.qmp, discover=False) as attached:
                waiting = asyncio.ensure_future(wait_for_hits(attached))
                await asyncio.sleep(turn * 0.02)
            async with asyncio.timeout(ENDS_S):
                with suppress(UsageError):  # closed before it was set
                    await waiting
            assert machine.monitor.running()
            assert not stubs(machine)
            before = counter(machine)
            await until(partial(counts_on, machine, before))


def counts_on(machine: BareQemu, before: int) -> bool:
    return counter(machine) - before > 1000


@asynchronous
async def test_a_qemu_that_ends_ends_the_stream(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    async with qvmi.attach(guest.qmp) as machine, machine.breakpoints(FORK) as hits:
        guest.kill()
        with pytest.raises(MachineGone):
            await take(hits, 1)


# ------------------------------------------------------------------------------- nothing is left behind


@asynchronous
async def test_a_cancel_at_any_moment_leaves_nothing_behind(stormy: Guest) -> None:
    async with qvmi.attach(stormy.qmp) as machine:

        async def wait_for_hits() -> None:
            async with machine.breakpoints(FORK) as hits:
                await take(hits, 2)

        for turn in range(20):
            waiting = asyncio.ensure_future(wait_for_hits())
            await asyncio.sleep(turn * 0.004)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            assert stormy.monitor.running()
            assert not stubs(stormy)


HOLD: Final = """
import asyncio, sys, qvmi
async def hold():
    async with qvmi.attach(sys.argv[1]) as machine, machine.breakpoints("kernel_clone") as hits:
        print("set", flush=True)
        async for hit in hits:
            await machine.registers()
asyncio.run(hold())
"""


@contextmanager
def holder(guest: Guest) -> Iterator["subprocess.Popen[bytes]"]:
    program = subprocess.Popen([sys.executable, "-c", HOLD, guest.qmp], stdout=subprocess.PIPE)
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == b"set\n"
        yield program
    finally:
        program.stdout.close()
        program.kill()
        program.wait()


def test_a_program_that_is_killed_at_a_hot_breakpoint_leaves_its_guest_running(
    stormy: Guest,
) -> None:
    for turn in range(5):
        with holder(stormy) as program:
            time.sleep(turn * 0.01)
            os.kill(program.pid, signal.SIGKILL)
        deadline = time.monotonic() + ENDS_S
        while stubs(stormy) or not stormy.monitor.running():
            assert time.monotonic() < deadline, "the guardian has not made it good"
            time.sleep(POLL_S)
    # It runs on: it answers, and no breakpoint stops it any more.
    before = forks(stormy)
    assert forks(stormy) > before
    assert stormy.monitor.running()
