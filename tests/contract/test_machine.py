"""A machine answers the same, whether this process holds QEMU's sockets or the manager does.

The oracle is the lab's own monitor, the guest's /proc and its serial line.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from qvmi.errors import (
    MachineGone,
    PauseError,
    PolicyDenied,
    StaleView,
    SymbolNotFound,
    UsageError,
)
from qvmi.machine.events.event_stream import EventStream
from qvmi.policy import OBSERVE, READ_ONLY
from qvmi.semantics.rows.events import EventKind, NotSeen, ProcessExited, ProcessStarted
from qvmi.view import Taken
from tests.asynchronous import asynchronous, until
from tests.contract.machines import MACHINES, Open, by_manager
from tests.guests.agreement import assert_processes_agree
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

ENDS_S = 60.0
BACKGROUND = "sleep 1000 >/dev/null 2>&1 & echo $!"
Told = TypeVar("Told", ProcessStarted, ProcessExited)
FORK = "kernel_clone"
PSLIST = "linux.pslist.PsList"
OVERLAPPING = 6


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


async def event_of(stream: EventStream, kind: type[Told], pid: int) -> Told:
    """This waits for what is told of a process."""
    async with asyncio.timeout(ENDS_S):
        async for event in stream:
            if isinstance(event, kind) and event.process.pid == pid:
                return event
    raise AssertionError(f"the events ended without a {kind.__name__} of {pid}")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


every_machine = pytest.mark.parametrize("open_machine", MACHINES.values(), ids=MACHINES)


@every_machine
@asynchronous
async def test_lists_the_processes_that_the_guest_tells_of(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        assert machine.guest.processes().provenance.taken is Taken.LIVE
        assert assert_processes_agree(guest, machine.guest.processes) > 2
        queried = await machine.query(lambda seen: seen.processes())
        assert {one.pid for one in queried} >= {1, 2}


@every_machine
@asynchronous
async def test_a_capture_is_of_one_moment_and_the_guest_runs_on(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        listing = await machine.capture(lambda seen: seen.processes())
        assert guest.monitor.running()
        assert listing.provenance.taken is Taken.CAPTURED
        assert 0 < listing.provenance.pause_s <= machine.stood_still_s
        assert {one.pid for one in listing} >= {1, 2}


@every_machine
@asynchronous
async def test_the_guest_stands_still_for_a_block_whose_view_ends_with_it(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        async with machine.paused() as view:
            assert not guest.monitor.running()
            assert not (await machine.run_state()).running
            paused = machine.guest
            assert paused.processes().provenance.taken is Taken.PAUSED
            assert len(view.vcpus) == (await machine.facts()).vcpus
        assert guest.monitor.running()
        with pytest.raises(StaleView):
            paused.processes()
        assert machine.guest.processes().provenance.taken is Taken.LIVE


@every_machine
@asynchronous
async def test_pauses_of_several_tasks_end_in_any_order(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        stacks = [AsyncExitStack() for _ in range(OVERLAPPING)]
        for stack in stacks:
            await stack.enter_async_context(machine.paused())
        for stack in stacks:
            assert not guest.monitor.running()
            assert machine.guest.processes().provenance.taken is Taken.PAUSED
            await stack.aclose()
        assert guest.monitor.running()
        assert machine.guest.processes().provenance.taken is Taken.LIVE


@every_machine
@asynchronous
async def test_a_guest_that_its_owner_stopped_stays_stopped(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        guest.monitor.execute("stop")
        try:
            async with machine.paused() as view:
                assert view.paused_s() == 0.0
            assert not guest.monitor.running()
            with pytest.raises(PauseError):
                async with machine.breakpoints(FORK):
                    pass
        finally:
            guest.monitor.execute("cont")


@every_machine
@asynchronous
async def test_that_somebody_else_let_the_guest_run_is_told(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        with pytest.raises(StaleView):
            async with machine.paused():
                guest.monitor.execute("cont")
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_an_error_within_a_pause_lets_the_guest_run(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        with pytest.raises(ZeroDivisionError):
            async with machine.paused():
                _ = 1 // 0
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_tells_the_registers_of_every_vcpu(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        vcpus = await machine.registers()
        told = guest.monitor.execute("query-cpus-fast")
        assert [one.index for one in vcpus] == [one["cpu-index"] for one in told]
        assert {one.root_register for one in vcpus} - {None, 0}
        stub = await machine.system_registers()
        assert [one.index for one in stub.vcpus] == [one.index for one in vcpus]
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_tells_what_qemu_says_of_the_machine(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        facts = await machine.facts()
        version = guest.monitor.execute("query-version")["qemu"]
        said = "{major}.{minor}.{micro}".format(**version)
        assert (facts.qemu_version, facts.run_state, facts.epoch) == (said, "running", 0)
        assert facts.address == guest.qmp


@every_machine
@asynchronous
async def test_each_fork_is_a_hit_and_a_condition_chooses(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    at = guest.kallsyms().addresses.get(FORK)
    async with open_machine(guest, profiles, OBSERVE) as machine:
        async with (
            machine.breakpoints(FORK) as hits,
            machine.breakpoints(FORK, condition=lambda hit: hit.task is None) as none,
        ):
            await asyncio.to_thread(guest.run, "true")
            async with asyncio.timeout(ENDS_S):
                hit = await anext(hits)
            assert hit.place == FORK
            assert hit.task is not None
            assert hit.task.pid > 0
            assert at in (None, hit.address)
            assert hit.registers.index == hit.vcpu
            await until(lambda: none.hits > 0, within_s=ENDS_S)
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_a_breakpoint_at_no_symbol_is_refused(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        with pytest.raises(SymbolNotFound):
            async with machine.breakpoints("no_such_function"):
                pass
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_a_plugin_of_volatility_lists_the_same_processes(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, OBSERVE) as machine:
        table = await machine.volatility(PSLIST)
        native = machine.guest.processes()
        assert {row["PID"] for row in table.items} >= {1, 2}
        assert len(table.items) >= len(native.items) // 2


@every_machine
@asynchronous
async def test_what_the_policy_does_not_grant_is_refused_and_says_so(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, READ_ONLY) as machine:
        assert machine.guest.processes().items
        with pytest.raises(PolicyDenied) as pause:
            async with machine.paused():
                pass
        assert pause.value.grant == "pause"
        with pytest.raises(PolicyDenied):
            await machine.capture(lambda seen: seen.processes())
        with pytest.raises(PolicyDenied) as breakpoint_:
            async with machine.breakpoints(FORK):
                pass
        assert breakpoint_.value.grant == "breakpoint"
        assert guest.monitor.running()


@every_machine
@asynchronous
async def test_tells_what_happens_in_the_guest_and_accounts_for_each_fork(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, READ_ONLY) as machine:
        with pytest.raises(UsageError, match="no-such"):
            async with machine.events(["no-such"]):
                pass
        async with machine.events([EventKind.STARTED, EventKind.EXITED]) as stream:
            pid = int(await asyncio.to_thread(guest.run, BACKGROUND))
            started = await event_of(stream, ProcessStarted, pid)
            await asyncio.to_thread(guest.run, f"kill {pid}")
            await event_of(stream, ProcessExited, pid)
        account = stream.account
    assert started.provenance.taken is Taken.LIVE
    assert account.forks == account.found + account.missed > 0


@every_machine
@asynchronous
async def test_whoever_waits_for_events_comes_to_an_end_where_the_machine_is_closed(
    open_machine: Open, guest: Guest, profiles: Path
) -> None:
    async with open_machine(guest, profiles, READ_ONLY) as machine:
        watching = machine.events()
        stream = await watching.__aenter__()
        assert "qvmi events" in threads()
    assert "qvmi events" not in threads()
    assert [event async for event in stream if isinstance(event, NotSeen)] == []
    await watching.__aexit__(None, None, None)


@asynchronous
async def test_of_exact_events_a_machine_seen_over_the_bus_names_what_else_there_is(
    guest: Guest, profiles: Path
) -> None:
    async with by_manager(guest, profiles, READ_ONLY) as machine:
        with pytest.raises(UsageError, match=r"events\(\) here, or breakpoints\(\)"):
            machine.exact_events()


@every_machine
@asynchronous
async def test_a_reset_is_a_new_epoch_and_makes_older_views_stale(
    open_machine: Open, guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    guest.monitor.execute("set-action", reboot="reset")
    async with open_machine(guest, profiles, OBSERVE) as machine:
        before, view, seen = machine.epoch, machine.view, machine.guest
        guest.monitor.execute("system_reset")
        async with asyncio.timeout(ENDS_S):
            while machine.epoch == before:
                await machine.run_state()
        with pytest.raises(StaleView):
            view.require_current()
        with pytest.raises(StaleView):
            seen.processes()
        with pytest.raises(StaleView):
            _ = machine.guest


@every_machine
@asynchronous
async def test_the_end_of_qemu_is_told(
    open_machine: Open, guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    async with open_machine(guest, profiles, OBSERVE) as machine:
        seen = machine.guest
        guest.process.end()
        with pytest.raises(MachineGone):
            await machine.run_state()
        with pytest.raises(MachineGone):
            seen.processes()
