"""A guest is stopped only for as long as somebody wants, whatever happens to those who wanted it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.errors import MachineGone, PauseError, StaleView
from qvmi.view import Taken
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import Guest

ENDS_S: Final = 20.0
POLL_S: Final = 0.005


def wait_until_running(machine: BareQemu) -> None:
    deadline = time.monotonic() + ENDS_S
    while not machine.monitor.running():
        assert time.monotonic() < deadline, "the guest stands still for ever"
        time.sleep(POLL_S)


# -------------------------------------------------------------------------------------- stop and go


@asynchronous
async def test_a_guest_stands_still_within_the_block_and_runs_after_it() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            async with attached.paused() as view:
                assert not machine.monitor.running()
                assert len(view.vcpus) == 1
                assert view.provenance.taken is Taken.PAUSED
            assert machine.monitor.running()


@asynchronous
async def test_a_guest_that_its_owner_paused_stays_paused() -> None:
    with bare_qemu() as machine:
        machine.monitor.execute("stop")
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            async with attached.paused() as view:
                assert view.paused_s() == 0.0
            assert not machine.monitor.running()
        assert not machine.monitor.running()


@asynchronous
async def test_blocks_nest_and_the_last_one_lets_the_guest_run() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            async with attached.paused():
                async with attached.paused():
                    pass
                assert not machine.monitor.running()
            assert machine.monitor.running()


@asynchronous
async def test_blocks_of_several_tasks_may_overlap() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:

            async def stand(turns: int) -> None:
                for _ in range(turns):
                    async with attached.paused():
                        assert not (await attached.run_state()).running
                        await asyncio.sleep(0)

            await asyncio.gather(*(stand(turns) for turns in range(1, 9)))
            assert machine.monitor.running()


@asynchronous
async def test_an_error_within_the_block_lets_the_guest_run() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            with pytest.raises(ZeroDivisionError):
                async with attached.paused():
                    _ = 1 // 0
            assert machine.monitor.running()


@asynchronous
async def test_a_cancel_at_any_moment_lets_the_guest_run() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:

            async def stand() -> None:
                async with attached.paused():
                    await asyncio.sleep(0.002)

            await stand()
            for turn in range(60):
                standing = asyncio.ensure_future(stand())
                await asyncio.sleep(turn * 0.0001)
                standing.cancel()
                with suppress(asyncio.CancelledError):
                    await standing
                assert machine.monitor.running()


@asynchronous
async def test_somebody_elses_cont_within_the_block_is_told() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            with pytest.raises(StaleView, match="somebody else"):
                async with attached.paused():
                    machine.monitor.execute("cont")
            assert machine.monitor.running()


@asynchronous
async def test_a_qemu_that_ends_within_the_block_is_gone() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            with pytest.raises(MachineGone):
                async with attached.paused():
                    machine.kill()


# -------------------------------------------------------------------------------- the guardian's part

HOLD = """
import asyncio, sys, qvmi
async def hold():
    async with qvmi.attach(sys.argv[1], discover=False) as machine, machine.paused():
        print("paused", flush=True)
        {then}
asyncio.run(hold())
"""
SLEEP: Final = "await asyncio.sleep(600)"
BUSY: Final = """
        while True:
            await asyncio.gather(*(machine.registers() for _ in range(8)))
"""
FORKED: Final = """
        import os, time
        if not os.fork():
            time.sleep(600)
        await asyncio.sleep(600)
"""


@contextmanager
def holder(machine: BareQemu, then: str = SLEEP) -> Iterator["subprocess.Popen[bytes]"]:
    """This is a program that has paused the guest, with the children that it may have."""
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then.strip()), machine.qmp],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == b"paused\n"
        yield program
    finally:
        program.stdout.close()
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


@pytest.mark.parametrize("then", [SLEEP, BUSY, FORKED], ids=["idle", "busy", "forked"])
def test_a_program_that_is_killed_leaves_its_guest_running(then: str) -> None:
    with bare_qemu() as machine:
        for _ in range(3):
            with holder(machine, then) as program:
                assert not machine.monitor.running()
                program.kill()
                wait_until_running(machine)


def test_a_program_that_is_killed_leaves_its_guest_running_though_others_wait_for_the_socket() -> (
    None
):
    with bare_qemu() as machine, holder(machine) as program, socket.socket(socket.AF_UNIX) as other:
        other.connect(machine.qmp)
        program.kill()
        wait_until_running(machine)
        other.settimeout(ENDS_S)
        assert b"QMP" in other.recv(4096)


def test_a_guest_that_its_owner_paused_stays_paused_when_the_program_is_killed() -> None:
    with bare_qemu() as machine:
        machine.monitor.execute("stop")
        with holder(machine) as program:
            program.kill()
            program.wait()
            asyncio.run(
                _attach_once(machine.qmp)
            )  # the guardian has gone then, and left the socket
            assert not machine.monitor.running()


async def _attach_once(address: str) -> None:
    async with qvmi.attach(address, discover=False):
        pass


@asynchronous
async def test_without_a_guardian_nothing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            monkeypatch.setattr(sys, "executable", "/no/such/python")
            with pytest.raises(PauseError, match="cannot be started"):
                async with attached.paused():
                    pass
            assert machine.monitor.running()


@asynchronous
async def test_a_guardian_that_was_killed_is_replaced() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached:
            async with attached.paused():
                pass
            for guardian in guardians_of(os.getpid()):
                os.kill(guardian, signal.SIGKILL)
                await asyncio.to_thread(os.waitid, os.P_PID, guardian, os.WEXITED | os.WNOWAIT)
            async with attached.paused():
                assert guardians_of(os.getpid())
            assert machine.monitor.running()


@asynchronous
async def test_nothing_is_left_behind() -> None:
    with bare_qemu() as machine:
        async with qvmi.attach(machine.qmp, discover=False) as attached, attached.paused():
            assert len(guardians_of(os.getpid())) == 1
        assert not guardians_of(os.getpid())


def guardians_of(parent: int) -> list[int]:
    """These are the processes that a program has started as guardians."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for task in Path(f"/proc/{parent}/task").iterdir():
        children += (task / "children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, line in lines.items() if b"guardian_process.py" in line]


# ----------------------------------------------------------------------------------------- what is seen


@asynchronous
async def test_within_the_block_the_guest_answers_for_the_pause(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        before = machine.guest
        async with machine.paused():
            paused = machine.guest
            first, second = paused.processes(), paused.processes()
            assert first.items == second.items
            assert first.provenance.taken is Taken.PAUSED
            assert 0 < first.provenance.pause_s < second.provenance.pause_s
            assert before.processes().provenance.taken is Taken.LIVE
        with pytest.raises(StaleView, match="the pause has ended"):
            paused.processes()
        assert machine.guest.processes().provenance.taken is Taken.LIVE


def test_a_capture_equals_proc(guest: Guest) -> None:
    with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:

        def capture() -> qvmi.Listing[qvmi.Process]:
            found: qvmi.Listing[qvmi.Process] = machine.capture(lambda linux: linux.processes())
            assert found.provenance.taken is Taken.CAPTURED
            assert found.provenance.pause_s > 0
            assert guest.monitor.running()
            return found

        assert_processes_agree(guest, capture)
