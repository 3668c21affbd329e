"""System registers by the gdbstub: a short pause that is told, after which nothing is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import pytest

import qvmi
from qvmi import Taken
from qvmi.errors import GdbstubBusy, PolicyDenied, StaleView
from qvmi.policy import READ_ONLY
from tests.asynchronous import asynchronous
from tests.guests.bare_qemu import BareQemu
from tests.guests.stub_machines import counter, counting_machine, guest_runs, stub_of
from tests.guests.x86_64_vcpus import x86_64_vcpus

ENDS_S: Final = 20.0
POLL_S: Final = 0.01


@pytest.fixture(scope="module")
def machine() -> Iterator[BareQemu]:
    """This is a machine whose vCPU counts, so that it is seen to run."""
    with counting_machine() as made:
        yield made


def stubs(machine: BareQemu) -> list[str]:
    rows = machine.monitor.execute("query-chardev")
    return [row["filename"] for row in rows if row["label"] == "gdb"]


def assert_runs_with_nothing_left(machine: BareQemu) -> None:
    """This waits for the guardian, where it is its turn."""
    deadline = time.monotonic() + ENDS_S
    before = counter(machine)
    while stubs(machine) or not guest_runs(machine) or counter(machine) == before:
        assert time.monotonic() < deadline, "the guest does not run on"
        time.sleep(POLL_S)


@asynchronous
async def test_they_are_all_there_and_the_pause_is_told(machine: BareQemu) -> None:
    async with qvmi.attach(machine.qmp, discover=False) as attached:
        view = await attached.system_registers()
        (vcpu,), (plain,) = x86_64_vcpus(view.vcpus), x86_64_vcpus(await attached.registers())
    assert (vcpu.kernel_gs_base, plain.kernel_gs_base) == (0, None)
    assert (vcpu.cr0, vcpu.cr3, vcpu.cs) == (plain.cr0, plain.cr3, plain.cs)
    assert view.provenance.taken is Taken.CAPTURED
    assert view.provenance.pause_s > 0.0
    assert_runs_with_nothing_left(machine)


@asynchronous
async def test_a_guest_that_stood_still_stands_still(machine: BareQemu) -> None:
    machine.monitor.execute("stop")
    try:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            view = await attached.system_registers()
            assert view.provenance.pause_s == 0.0
            assert not guest_runs(machine)
            assert not stubs(machine)
    finally:
        machine.monitor.execute("cont")


@asynchronous
async def test_within_a_pause_they_are_of_its_moment(machine: BareQemu) -> None:
    async with qvmi.attach(machine.qmp, discover=False) as attached:
        async with attached.paused() as still:
            view = await attached.system_registers()
            assert view.provenance == still.provenance
            (vcpu,), (plain,) = x86_64_vcpus(view.vcpus), x86_64_vcpus(still.vcpus)
            assert (vcpu.rip, vcpu.rax) == (plain.rip, plain.rax)
            assert not guest_runs(machine)
        with pytest.raises(StaleView):
            view.require_current()
    assert_runs_with_nothing_left(machine)


@asynchronous
async def test_who_may_not_stop_the_guest_is_refused_them(machine: BareQemu) -> None:
    async with qvmi.attach(machine.qmp, discover=False, policy=READ_ONLY) as attached:
        with pytest.raises(PolicyDenied, match="pause"):
            await attached.system_registers()
        assert attached.stood_still_s == 0.0


@asynchronous
async def test_beside_a_breakpoint_the_same_stub_is_asked(machine: BareQemu) -> None:
    async with (
        qvmi.attach(machine.qmp, discover=False) as attached,
        attached.breakpoints(qvmi.Va(0xFFFF0)),
    ):
        view = await attached.system_registers()
        assert len(view.vcpus) == 1
        assert len(stubs(machine)) == 1
    assert_runs_with_nothing_left(machine)


@asynchronous
async def test_a_stub_that_a_debugger_holds_is_left_to_it() -> None:
    with counting_machine() as machine:
        place = stub_of(machine)
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            reader, writer = await asyncio.open_unix_connection(place)
            writer.write(b"+$?#3f")
            assert await reader.readuntil(b"$T")
            with pytest.raises(GdbstubBusy, match="held by"):
                await attached.system_registers()
            writer.close()


@asynchronous
async def test_a_cancel_at_any_moment_leaves_nothing_behind(machine: BareQemu) -> None:
    async with qvmi.attach(machine.qmp, discover=False) as attached:
        for turn in range(20):
            asking = asyncio.ensure_future(attached.system_registers())
            await asyncio.sleep(turn * 0.001)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            assert guest_runs(machine)
            assert not stubs(machine)
    assert_runs_with_nothing_left(machine)


ASK: Final = """
import asyncio, sys, qvmi
async def ask():
    async with qvmi.attach(sys.argv[1], discover=False) as machine:
        while True:
            await machine.system_registers()
            print("asked", flush=True)
asyncio.run(ask())
"""


def test_a_program_that_is_killed_while_it_asks_leaves_its_guest_running(
    machine: BareQemu,
) -> None:
    for turn in range(10):
        program = subprocess.Popen([sys.executable, "-c", ASK, machine.qmp], stdout=subprocess.PIPE)
        assert program.stdout is not None
        assert program.stdout.readline() == b"asked\n"
        time.sleep(turn * 0.0007)
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        program.stdout.close()
        assert_runs_with_nothing_left(machine)
