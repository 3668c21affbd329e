"""What is written is what the guest finds, and nothing is written that was not granted or cannot be.

The guest's own word is the oracle: its /proc over the serial line, or what a program of a few bytes does.
"""

import asyncio
import hashlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.audit import AuditLog
from qvmi.errors import (
    AuditFailed,
    GdbstubBusy,
    GuestRunning,
    NotWritable,
    PolicyDenied,
    StaleView,
    TranslationFault,
    UsageError,
    WalkFailed,
    WriteFailed,
)
from qvmi.gdbstub.client import GdbClient
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_loan import StubLoan
from qvmi.machine.holding.writing import MAX_WRITE
from qvmi.policy import OBSERVE, READ_ONLY, Grant
from qvmi.qmp.monitor import Monitor
from qvmi.qmp.open import open_monitor
from qvmi.symbols.layout import field_offset
from tests.asynchronous import asynchronous, until
from tests.guests.bare_qemu import BareQemu
from tests.guests.gdbstub import stub_registers
from tests.guests.lab import Guest
from tests.guests.multiboot import COUNTING_LOOP, COUNTS_AT
from tests.guests.stub_machines import counter, counting_machine, stub_of
from tests.guests.x86_64_vcpus import x86_64_vcpu, x86_64_vcpus
from tests.proofs import proof_size

CHANGE: Final = OBSERVE.plus(Grant.WRITE)
PAGE: Final = 4096
ENVIRONMENT: Final = 20_000
ENDS_S: Final = 30.0
POLL_S: Final = 0.005
GDB_S: Final = 60
START_CODE, ARG_START, ENV_START = 26, 48, 50
"""Fields of /proc/PID/stat; proc_pid_stat(5)."""

MOST_SLEEPERS: Final = 20
"""Processes that are started until the pages of one lie apart, as those of nearly every one do."""

CODE: Final = b"\xff\x00\xeb\xfc"
COUNTS_DOWN: Final = b"\xff\x08"
"""``dec dword [eax]``; Intel SDM volume 2, DEC r/m32 (FF /1)."""


@contextmanager
def sleeper(guest: Guest) -> Iterator[int]:
    """This is the pid of a process of the guest with a long environment, which never looks at it."""
    letters = f"$(head -c {ENVIRONMENT} /dev/zero | tr '\\0' a)"
    line = guest.run(f"X={letters} sleep 3000 >/dev/null 2>&1 </dev/null & echo $!")
    pid = int(line)
    deadline = time.monotonic() + ENDS_S
    while b"sleep" not in guest.run(f"cat /proc/{pid}/comm"):
        assert time.monotonic() < deadline, "the process does not start"
    try:
        yield pid
    finally:
        guest.run(f"kill -9 {pid}")


def stat(guest: Guest, pid: int, field: int) -> int:
    """This is a number that the guest's /proc tells of a process."""
    line = guest.run(f"cat /proc/{pid}/stat")
    return int(line.rpartition(b")")[2].split()[field - 3])


def process_of(machine: qvmi.Machine, pid: int) -> qvmi.Process:
    """This is the row of one process."""
    (found,) = (one for one in machine.guest.processes() if one.pid == pid)
    return found


def digest(guest: Guest) -> str:
    """This is what the guest's whole RAM is, seen past everybody."""
    with guest.ram_paths[0].open("rb") as ram:
        return hashlib.file_digest(ram, "sha256").hexdigest()


# -------------------------------------------------------------------------------- what the guest finds


@asynchronous
async def test_a_name_written_into_the_kernel_is_what_proc_tells(guest: Guest) -> None:
    with sleeper(guest) as pid:
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            at = field_offset(machine.symbols, "task_struct", "comm")
            va = qvmi.Va(process_of(machine, pid).address + at)
            written = await machine.write_virtual(va, b"written\0")
        assert guest.run(f"cat /proc/{pid}/comm") == b"written\n"
    assert (written.address, written.kind) == (va, "virtual")
    assert (written.old[:6], written.new) == (b"sleep\0", b"written\0")
    assert written.pause_s > 0
    assert guest.monitor.running()


@asynchronous
async def test_arguments_written_into_a_process_are_what_proc_tells(guest: Guest) -> None:
    with sleeper(guest) as pid:
        va = qvmi.Va(stat(guest, pid, ARG_START))
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            process = process_of(machine, pid)
            written = await machine.write_virtual(va, b"SLOOP", process=process, even_shared=True)
        assert written.old == b"sleep"
        assert guest.run(f"cat /proc/{pid}/cmdline") == b"SLOOP\x003000\0"


def lies_apart(machine: qvmi.Machine, pid: int, va: int) -> bool:
    """This tells whether the next three pages of a process's memory are not a single piece of RAM."""
    space = machine.user_space(process_of(machine, pid))
    return len({space.translate(qvmi.Va(va + at)) - at for at in (0, PAGE, 2 * PAGE)}) > 1


@asynchronous
async def test_a_write_across_pages_is_whole_and_leaves_its_neighbours(guest: Guest) -> None:
    new = b"".join(b"%07d " % number for number in range(1500))
    with ExitStack() as stack:
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            for _ in range(MOST_SLEEPERS):
                pid = stack.enter_context(sleeper(guest))
                before = guest.run(f"cat /proc/{pid}/environ")
                first = before.index(b"X=") + 2 + 100
                va = qvmi.Va(stat(guest, pid, ENV_START) + first)
                if lies_apart(machine, pid, va):
                    break
            else:
                pytest.fail("in no process pages lie apart, so that this would prove less")
            process = process_of(machine, pid)
            written = await machine.write_virtual(va, new, process=process, even_shared=True)
        after = guest.run(f"cat /proc/{pid}/environ")
    assert written.old == before[first : first + len(new)]
    assert after == before[:first] + new + before[first + len(new) :]


@asynchronous
async def test_code_that_is_written_is_the_code_that_runs() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            written = await attached.write_physical(qvmi.Pa(COUNTING_LOOP), COUNTS_DOWN)
        assert written.old == CODE[:2]
        await until(partial(falls, machine))


def falls(machine: BareQemu) -> bool:
    first = counter(machine)
    return counter(machine) < first


@asynchronous
async def test_a_register_that_is_written_is_the_one_that_the_program_uses() -> None:
    elsewhere = COUNTS_AT + 0x1000
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            written = await attached.write_registers(0, {"rax": elsewhere, "rbx": 0x4711})
        assert (written.vcpu, written.old["rax"]) == (0, COUNTS_AT)
        assert written.new == {"rax": elsewhere, "rbx": 0x4711}
        stands = counter(machine)
        await until(lambda: number_at(machine, elsewhere) > 0)
        assert counter(machine) == stands
        assert gdb_sees(machine, "$ebx") == 0x4711


def number_at(machine: BareQemu, pa: int) -> int:
    return int.from_bytes((machine.folder / "ram").read_bytes()[pa : pa + 4], "little")


def gdb_sees(machine: BareQemu, expression: str) -> int:
    """This is what gdb prints; it lets the guest run again."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    commands = ["set pagination off", f"target remote {stub_of(machine)}"]
    commands += [f'printf "value %lu\\n", {expression}', "detach"]
    options = [part for line in commands for part in ("-ex", line)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *options], capture_output=True, timeout=GDB_S, check=True
    )
    match = re.search(rb"value (\d+)", done.stdout)
    assert match is not None, done
    return int(match[1])


@asynchronous
async def test_registers_are_called_as_in_a_view_and_only_the_named_vcpu_is_written() -> None:
    with counting_machine("-smp", "2") as machine:
        machine.monitor.execute("stop")
        before = stub_registers(machine.monitor, machine.folder, 2)
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            flags = x86_64_vcpu(attached.view.vcpus[1]).rflags ^ 1
            await attached.write_registers(1, {"rflags": flags, "rdx": 0x1234})
            assert x86_64_vcpu((await attached.registers())[1]).rflags == flags
        after = stub_registers(machine.monitor, machine.folder, 2)
        assert after[0] == before[0]
        assert after[1] == {**before[1], "rflags": flags, "rdx": 0x1234}


# ------------------------------------------------------------------------------------- what is refused


@asynchronous
async def test_without_the_grant_nothing_is_written_by_any_way(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        before = digest(guest)
        async with qvmi.attach(guest.qmp) as machine:
            va, pa = machine.guest.facts().kernel_base, qvmi.Pa(0x1000)
            writes: dict[str, Callable[[], Awaitable[object]]] = {
                "write_physical": lambda: machine.write_physical(pa, b"x"),
                "write_virtual": lambda: machine.write_virtual(qvmi.Va(va), b"x"),
                "write_registers": lambda: machine.write_registers(0, {"rax": 1}),
            }
            for kind in (qvmi.Machine, qvmi.SyncMachine):
                assert {name for name in dir(kind) if name.startswith("write")} == writes.keys()
            registers = await machine.registers()
            for write in writes.values():
                with pytest.raises(PolicyDenied, match="needs grant 'write'"):
                    await write()
            assert await machine.registers() == registers
        assert digest(guest) == before
    finally:
        guest.monitor.execute("cont")


@asynchronous
async def test_a_session_that_may_only_read_does_not_even_stop_the_guest(
    guest: Guest, tmp_path: Path
) -> None:
    guest.monitor.execute("query-status")  # what others did is told before its answer
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp, policy=READ_ONLY) as machine:
        for refused in (machine.paused(), machine.breakpoints("kernel_clone")):
            with pytest.raises(PolicyDenied):
                await refused.__aenter__()
        with pytest.raises(PolicyDenied, match="'pause'"):
            await machine.capture(lambda linux: linux.processes())
        with pytest.raises(PolicyDenied, match="'pause'"):
            await machine.dump(tmp_path / "core")
        assert machine.guest.processes().items
    assert guest.monitor.running()
    assert not guest.monitor.events
    assert not os.listdir(tmp_path)  # noqa: PTH208 - that would block, says another rule


@asynchronous
async def test_a_page_that_the_process_may_not_write_is_refused(guest: Guest) -> None:
    with sleeper(guest) as pid:
        va = qvmi.Va(stat(guest, pid, START_CODE))
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            process = process_of(machine, pid)
            before = machine.user_space(process).read(va, 16)
            with pytest.raises(NotWritable, match="may share the page") as refused:
                await machine.write_virtual(va, bytes(16), process=process)
            assert refused.value.address == va
            kernel = qvmi.Va(machine.guest.facts().kernel_base)
            # On aarch64 a process has page tables of the programs' half alone.
            with pytest.raises((NotWritable, TranslationFault), match=r"may not write|lower half"):
                await machine.write_virtual(kernel, b"x", process=process, even_shared=True)
            assert machine.user_space(process).read(va, 16) == before
    assert guest.monitor.running()


@asynchronous
async def test_a_range_that_ends_behind_what_is_mapped_is_not_begun(guest: Guest) -> None:
    with sleeper(guest) as pid:
        maps = guest.run(f"cat /proc/{pid}/maps").decode()
        (stack,) = (line for line in maps.splitlines() if line.endswith("[stack]"))
        end = int(stack.split()[0].partition("-")[2], 16)
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            process = process_of(machine, pid)
            before = machine.user_space(process).read(qvmi.Va(end - 64), 64)
            with pytest.raises(TranslationFault) as fault:
                await machine.write_virtual(
                    qvmi.Va(end - 64), bytes(128), process=process, even_shared=True
                )
            assert fault.value.address == end
            assert machine.user_space(process).read(qvmi.Va(end - 64), 64) == before


@asynchronous
async def test_a_process_that_has_ended_is_not_written_to(guest: Guest) -> None:
    with sleeper(guest) as pid:
        va = qvmi.Va(stat(guest, pid, ARG_START))
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            process = process_of(machine, pid)
            guest.run(f"kill -9 {pid}")
            await until(lambda: all(one.pid != pid for one in machine.guest.processes()))
            with pytest.raises(WalkFailed, match="not in it any more"):
                await machine.write_virtual(va, b"x", process=process)


@pytest.mark.parametrize(
    ("pa", "size"),
    [
        pytest.param(0xFED0_0000, 8, id="timer"),
        pytest.param(0xFFFF_FFF0, 8, id="firmware"),
        pytest.param(0x1_0000_0000_0000, 8, id="nothing"),
        pytest.param((64 << 20) - 4, 8, id="end of RAM"),
    ],
)
@asynchronous
async def test_what_is_no_ram_is_not_written(pa: int, size: int) -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            with pytest.raises(NotWritable, match="only RAM is written"):
                await attached.write_physical(qvmi.Pa(pa), b"\xff" * size)
            assert machine.monitor.running()


@pytest.mark.parametrize("size", [0, MAX_WRITE + 1])
@asynchronous
async def test_a_write_of_nothing_or_of_too_much_is_refused(size: int) -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            with pytest.raises(UsageError, match=f"1 to {MAX_WRITE} bytes"):
                await attached.write_physical(qvmi.Pa(COUNTS_AT), bytes(size))


@pytest.mark.parametrize(
    ("vcpu", "values", "words"),
    [
        (1, {"rax": 1}, "no such vCPU"),
        (0, {"xyz": 1}, "no register 'xyz'"),
        (0, {"rbx": 1, "cs": 1 << 40}, "does not fit the 32 bits of cs"),
        (0, {"rax": -1}, "does not fit"),
        (0, {}, "0 registers"),
    ],
)
@asynchronous
async def test_a_register_that_cannot_be_is_refused_and_none_is_written(
    vcpu: int, values: dict[str, int], words: str
) -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            with pytest.raises(UsageError, match=words):
                await attached.write_registers(vcpu, values)
            (after,) = x86_64_vcpus(await attached.registers())
            assert (after.rax, after.rbx != 1) == (COUNTS_AT, True)
            assert machine.monitor.running()


@asynchronous
async def test_a_value_that_the_vcpu_does_not_keep_is_told_and_taken_back() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            cr0 = x86_64_vcpu((await attached.registers())[0]).cr0
            # The bit ET is hard-wired to 1; Intel SDM volume 3A, section 2.5.
            values = {"rbx": 0x4711, "cr0": cr0 & ~0x10}
            with pytest.raises(WriteFailed, match="there again") as failed:
                await attached.write_registers(0, values)
            assert failed.value.restored
            assert failed.value.wanted == values
            assert failed.value.found == {"rbx": 0x4711, "cr0": cr0}
            assert x86_64_vcpu((await attached.registers())[0]).rbx != 0x4711
            assert machine.monitor.running()


@asynchronous
async def test_two_pages_that_are_one_are_told_and_hold_what_they_held(guest: Guest) -> None:
    new = b"1" * PAGE + b"2" * PAGE
    with sleeper(guest) as pid:
        environment = stat(guest, pid, ENV_START)
        va = qvmi.Va((environment + PAGE - 1) // PAGE * PAGE)
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine, machine.paused():
            process = process_of(machine, pid)
            space = machine.user_space(process)
            first, second = (space.walk(qvmi.Va(va + at)).steps[-1] for at in (0, PAGE))
            before = space.read(va, PAGE)
            lie = await machine.write_physical(second.address, first.entry.to_bytes(8, "little"))
            with pytest.raises(WriteFailed, match="there again") as failed:
                await machine.write_virtual(va, new, process=process, even_shared=True)
            assert failed.value.restored
            assert (failed.value.wanted, failed.value.found) == (new, b"2" * 2 * PAGE)
            assert machine.user_space(process).read(va, 2 * PAGE) == 2 * before
            await machine.write_physical(second.address, lie.old)
        assert guest.run(f"cat /proc/{pid}/environ").count(b"a" * ENVIRONMENT) == 1


@asynchronous
async def test_even_shared_pages_are_written_where_that_is_asked_for(guest: Guest) -> None:
    with sleeper(guest) as pid, sleeper(guest) as other:
        start = stat(guest, pid, START_CODE)
        other_start = stat(guest, other, START_CODE)
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine, machine.paused():
            process = process_of(machine, pid)
            va = qvmi.Va(start)
            written = await machine.write_virtual(va, b"ELF?", process=process, even_shared=True)
            sharing = machine.user_space(process_of(machine, other))
            assert sharing.read(qvmi.Va(other_start), 4) == b"ELF?"
            await machine.write_virtual(va, written.old, process=process, even_shared=True)
        assert guest.run(f"cat /proc/{pid}/comm") == b"sleep\n"


# ------------------------------------------------------------------------- pauses, breakpoints, the log


@asynchronous
async def test_a_guest_that_stands_still_is_written_to_and_stands_on() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            async with attached.paused():
                for number in range(3):
                    await attached.write_physical(qvmi.Pa(COUNTS_AT), bytes([number, 0, 0, 0]))
                    assert counter(machine) == number
                    assert not machine.monitor.running()
            assert machine.monitor.running()
            machine.monitor.execute("stop")
            written = await attached.write_physical(qvmi.Pa(COUNTS_AT), bytes(4))
            assert written.pause_s == 0.0
            assert counter(machine) == 0
            assert not machine.monitor.running()
        assert not machine.monitor.running()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "within a pause"])
@asynchronous
async def test_breakpoints_in_what_is_written_stay_and_are_hit(*, paused: bool) -> None:
    loop = qvmi.Va(COUNTING_LOOP)
    with counting_machine() as machine:
        async with (
            qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached,
            attached.breakpoints(loop) as hits,
        ):
            await anext(hits)
            for code in (COUNTS_DOWN, CODE[:2], COUNTS_DOWN):
                if paused:
                    async with attached.paused():
                        await attached.write_physical(qvmi.Pa(loop), code)
                else:
                    await attached.write_physical(qvmi.Pa(loop), code)
                seen = hits.hits
                await until(lambda seen=seen: hits.hits > seen + 2)  # type: ignore[misc]
            await attached.write_registers(0, {"rbx": 0x4711})
        assert gdb_sees(machine, "$ebx") == 0x4711
        await until(partial(falls, machine))


@asynchronous
async def test_writes_of_several_tasks_do_not_mix() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            places = [qvmi.Pa(COUNTS_AT + PAGE * number) for number in range(1, 9)]
            await asyncio.gather(
                *(attached.write_physical(pa, b"%x" % pa * 400) for pa in places),
                *(attached.write_registers(0, {"rbx": number}) for number in range(4)),
            )
            ram = (machine.folder / "ram").read_bytes()
            assert all(ram[pa : pa + len(b"%x" % pa * 400)] == b"%x" % pa * 400 for pa in places)
            assert machine.monitor.running()


@asynchronous
async def test_the_owners_own_stub_is_used_again_and_again_and_stays() -> None:
    with counting_machine("-gdb", "tcp:127.0.0.1:0,server=on,wait=off") as machine:
        stubs = devices(machine)
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            for number in range(10):
                written = await attached.write_physical(qvmi.Pa(WRITTEN), bytes([number + 1]))
                assert written.old == bytes([number])
        assert devices(machine) == stubs
        assert machine.monitor.running()


def devices(machine: BareQemu) -> list[str]:
    return sorted(one["filename"] for one in machine.monitor.execute("query-chardev"))


@asynchronous
async def test_a_debugger_that_holds_the_stub_is_told_of_and_nothing_is_written() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            async with await GdbClient.connect(stub_of(machine)) as other:
                before = await other.read_physical(qvmi.Pa(WRITTEN), 4)
                with pytest.raises(GdbstubBusy, match="held by"):
                    await attached.write_physical(qvmi.Pa(WRITTEN), b"none")
                assert not machine.monitor.running()
                assert await other.read_physical(qvmi.Pa(WRITTEN), 4) == before
            assert machine.monitor.running()


@asynchronous
async def test_the_log_has_the_old_and_the_new_bytes(caplog: pytest.LogCaptureFixture) -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            with caplog.at_level(logging.INFO, "qvmi.audit"):
                await attached.write_physical(qvmi.Pa(COUNTING_LOOP), COUNTS_DOWN)
                await attached.write_registers(0, {"rax": COUNTS_AT + 8})
    assert caplog.messages == [
        f"write 2 bytes at physical address {COUNTING_LOOP:#x}: old ff00 new ff08",
        f"write rax of vCPU 0: old rax={COUNTS_AT:#x} new rax={COUNTS_AT + 8:#x}",
    ]


@asynchronous
async def test_a_write_that_cannot_be_logged_is_not_done() -> None:
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            with AuditLog(Path("/dev/full")):
                with pytest.raises(AuditFailed, match="/dev/full: No space left"):
                    await attached.write_physical(qvmi.Pa(COUNTING_LOOP), COUNTS_DOWN)
                with pytest.raises(AuditFailed):
                    await attached.write_registers(0, {"rax": COUNTS_AT + 8})
            found = (machine.folder / "ram").read_bytes()[COUNTING_LOOP:][: len(COUNTS_DOWN)]
            assert found == b"\xff\x00"
            assert machine.monitor.running()


# ------------------------------------------------------------------------------ whatever becomes of qvmi


@asynchronous
async def test_a_machine_that_is_closed_while_it_is_written_to_holds_all_or_nothing() -> None:
    pa, old, new = qvmi.Pa(WRITTEN), b"o" * MAX_WRITE, b"n" * MAX_WRITE
    with counting_machine() as machine:
        for turn in range(10):
            async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
                await attached.write_physical(pa, old)
                writing = asyncio.ensure_future(attached.write_physical(pa, new))
                await asyncio.sleep(turn * 0.002)
            found = (machine.folder / "ram").read_bytes()[pa : pa + MAX_WRITE]
            assert found in {old, new}
            assert machine.monitor.running()
            with suppress(UsageError):  # closed before it was begun
                assert (await writing).new == found == new


@asynchronous
async def test_a_guest_that_somebody_lets_run_while_the_stub_is_lent_runs_afterwards() -> None:
    with counting_machine() as machine:
        async with await open_monitor(machine.qmp, timeout_s=ENDS_S) as monitor:
            run_control = RunControl(monitor)

            async def disturbed(client: GdbClient) -> None:
                machine.monitor.execute("cont")
                with suppress(GuestRunning):
                    await client.read_physical(qvmi.Pa(WRITTEN), 4)

            with pytest.raises(StaleView, match="somebody else"):
                await lend(monitor, run_control, disturbed)
            await run_control.close()
        assert machine.monitor.running()
        before = counter(machine)
        await until(lambda: counter(machine) != before)


async def lend(
    monitor: Monitor, run_control: RunControl, work: Callable[[GdbClient], Awaitable[None]]
) -> None:
    async with run_control.paused():
        await StubLoan(monitor, run_control, None).do(work)


@asynchronous
async def test_a_cancel_at_any_moment_leaves_the_old_or_the_new_and_a_running_guest() -> None:
    pa, old, new = qvmi.Pa(COUNTS_AT + PAGE), b"o" * MAX_WRITE, b"n" * MAX_WRITE
    with counting_machine() as machine:
        async with qvmi.attach(machine.qmp, discover=False, policy=CHANGE) as attached:
            for turn in range(20):
                await attached.write_physical(pa, old)
                writing = asyncio.ensure_future(attached.write_physical(pa, new))
                await asyncio.sleep(turn * 0.002)
                writing.cancel()
                with suppress(asyncio.CancelledError):
                    await writing
                found = (machine.folder / "ram").read_bytes()[pa : pa + MAX_WRITE]
                assert found in {old, new}
                assert machine.monitor.running()


WRITTEN: Final = COUNTS_AT + PAGE
WRITE_FOR_EVER: Final = """
import asyncio, sys, qvmi
from contextlib import AsyncExitStack
from qvmi.policy import OBSERVE, Grant
async def write():
    place, at, loop, hot = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "hot"
    async with AsyncExitStack() as stack:
        attaching = qvmi.attach(place, discover=False, policy=OBSERVE.plus(Grant.WRITE))
        machine = await stack.enter_async_context(attaching)
        if hot:
            await stack.enter_async_context(machine.breakpoints(qvmi.Va(loop)))
        for number in range(1 << 30):
            await machine.write_physical(qvmi.Pa(at), bytes([97 + number % 26]) * 2000)
            await machine.write_registers(0, {"rbx": number})
            if not number:
                print("writes", flush=True)
asyncio.run(write())
"""


@pytest.mark.parametrize("how", ["plain", "hot"])
def test_a_program_that_is_killed_while_it_writes_leaves_its_guest_running(
    how: str, proof_count: Callable[[int], None]
) -> None:
    generator, kills = random.Random(7), proof_size(ci=6, full=25)
    with counting_machine() as machine:
        for _ in range(kills):
            kill_a_writer(machine, how, after_s=generator.uniform(0, 0.05))
            wait_until(machine.monitor.running)
            before = counter(machine)
            wait_until(lambda before=before: counter(machine) != before)  # type: ignore[misc]
            # A write of one packet is there whole or not at all.
            assert len(set((machine.folder / "ram").read_bytes()[WRITTEN : WRITTEN + 2000])) == 1
        # The next client finds a stub that means virtual addresses, and no breakpoint.
        with qvmi.attach_sync(machine.qmp, policy=CHANGE) as attached:
            attached.write_physical(qvmi.Pa(WRITTEN), b"next")
        assert asyncio.run(code_by_stub(machine)) == CODE
        assert machine.monitor.running()
    proof_count(kills)


def kill_a_writer(machine: BareQemu, how: str, *, after_s: float) -> None:
    """This kills a program so long after it has begun to write without end."""
    command = [sys.executable, "-c", WRITE_FOR_EVER, machine.qmp]
    command += [str(WRITTEN), str(COUNTING_LOOP), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"writes\n"
        time.sleep(after_s)
        program.send_signal(signal.SIGKILL)


async def code_by_stub(machine: BareQemu) -> bytes:
    async with await GdbClient.connect(stub_of(machine)) as client:
        return await client.read_virtual(qvmi.Va(COUNTING_LOOP), 4)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(POLL_S)
