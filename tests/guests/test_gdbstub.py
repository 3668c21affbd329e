"""The gdbstub client on real machines; gdb, QMP and the mapped RAM say what is true."""

import asyncio
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.aarch64 import Registers as Aarch64
from qvmi.arch.x86_64 import Registers
from qvmi.errors import (
    GdbstubBusy,
    GuestRunning,
    MachineGone,
    MemoryFault,
    NotGdbstub,
    SocketUnreachable,
    UsageError,
)
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.memory import MemoryRead
from qvmi.gdbstub.packets import BreakpointKind, StopReason, StopReply, ThreadId
from qvmi.qmp import commands
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous, until
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import Guest, GuestConfig
from tests.guests.multiboot import COUNTING_LOOP, COUNTS_AT
from tests.guests.pool import GuestPool
from tests.guests.stub_machines import (
    counter,
    counting_machine,
    guest_runs,
    stub_of,
    tells_of_a_stop,
)
from tests.proofs import proof_size

FIRST, SECOND = ThreadId(1, 1), ThreadId(2, 1)
TRAP, INTERRUPTED = 5, 2
GDB_S = 60
LOOP = Va(COUNTING_LOOP)
JUMP = Va(COUNTING_LOOP + 2)


def counts_on(machine: BareQemu, before: int) -> bool:
    return counter(machine) != before


@asynchronous
async def test_leaves_running_what_ran_and_stopped_what_stood() -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        told = tells_of_a_stop(path)
        async with await GdbClient.connect(path) as client:
            assert client.was_running is (True if told else None)
            assert not guest_runs(machine)
        assert guest_runs(machine)
        machine.monitor.execute("stop")
        async with await GdbClient.connect(path, was_running=None if told else False) as client:
            assert client.was_running is False
        assert not guest_runs(machine)


@asynchronous
async def test_attaches_and_detaches_again_and_again(proof_count: Callable[[int], None]) -> None:
    cycles = proof_size(ci=50, full=200)
    with counting_machine() as machine:
        path = stub_of(machine)
        for _ in range(cycles):
            client = await GdbClient.connect(path)
            assert await client.read_physical(Pa(COUNTING_LOOP), 4) == b"\xff\x00\xeb\xfc"
            await client.detach()
            before = counter(machine)
            await until(partial(counts_on, machine, before))
    proof_count(cycles)


def framed(body: str) -> bytes:
    return f"${body}#{sum(body.encode()) & 255:02x}".encode()


# What a client does before it is killed; each leaves the stub in another state.
CRASHES = {
    "attached": b"",
    "physical": framed("Qqemu.PhyMemMode:1"),
    "breakpoint": framed(f"Z0,{LOOP:x},1") + framed("c"),
    "half a packet": b"$m0,8",
    "half a checksum": b"$m0,8#a",
    "running": framed("c"),
}
CRASHING_CLIENT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(bytes.fromhex(sys.argv[2]))
heard = b""
while b"PacketSize" not in heard:
    heard += s.recv(4096)
print(flush=True)
input()
"""


@contextmanager
def other_client(path: str, requests: bytes = b"") -> Iterator["subprocess.Popen[bytes]"]:
    """This is a client in a process of its own, which has said something and keeps silent now."""
    said = (framed("qSupported:multiprocess+") + requests).hex()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CRASHING_CLIENT, path, said],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.communicate(b"\n")


@pytest.mark.parametrize("crash", CRASHES)
@asynchronous
async def test_attaches_after_a_client_that_was_killed(crash: str) -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        with other_client(path, CRASHES[crash]) as child:
            child.kill()
        client = await GdbClient.connect(path)
        assert await client.read_virtual(LOOP, 4) == b"\xff\x00\xeb\xfc"
        await client.detach()
        before = counter(machine)
        await until(lambda: counter(machine) != before)
        assert guest_runs(machine)


BUSY_CLIENT = """
import asyncio, sys
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.memory import MemoryRead

async def main():
    client = await GdbClient.connect(sys.argv[1])
    print(flush=True)
    reads = [MemoryRead(0x100000 + n * 512, 512) for n in range(300)]
    while True:
        await client.read_many_physical(reads)
        await client.insert(Breakpoint(int(sys.argv[2])))
        await client.resume()
        await client.next_stop()
        await client.remove(Breakpoint(int(sys.argv[2])))

asyncio.run(main())
"""


@asynchronous
async def test_a_client_killed_at_any_moment_leaves_a_stub_that_the_next_can_use(
    proof_count: Callable[[int], None],
) -> None:
    rng = random.Random(11)
    kills = proof_size(ci=10, full=50)
    with counting_machine() as machine:
        path = stub_of(machine)
        for _ in range(kills):
            arguments = [sys.executable, "-c", BUSY_CLIENT, path, str(LOOP)]
            child = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
            assert child.stdout is not None
            await child.stdout.readline()
            await asyncio.sleep(rng.random() / 20)
            child.kill()
            await child.wait()
            client = await GdbClient.connect(path)
            assert await client.read_virtual(LOOP, 4) == b"\xff\x00\xeb\xfc"
            await client.detach()
            before = counter(machine)
            await until(partial(counts_on, machine, before))
            assert guest_runs(machine)
        proof_count(kills)


@asynchronous
async def test_says_who_holds_the_stub_and_does_not_disturb_it() -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        told = tells_of_a_stop(path)
        with other_client(path) as child:
            async with asyncio.timeout(3):
                with pytest.raises(GdbstubBusy, match=rf"held by python\S* \(pid {child.pid}\)"):
                    await GdbClient.connect(path)
        async with await GdbClient.connect(path) as client:
            # The one before left without a word.
            assert client.was_running is (False if told else None)


@asynchronous
async def test_a_client_that_gave_up_in_the_queue_does_not_stop_the_guest_later() -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        told = tells_of_a_stop(path)
        holder = await GdbClient.connect(path)
        # A name that the kernel's table of sockets does not have, so that it must connect to see.
        other = machine.folder / "other"
        other.symlink_to(path)
        os.link(path, machine.folder / "same")
        with pytest.raises(GdbstubBusy, match="held by"):
            await GdbClient.connect(machine.folder / "same")
        await holder.detach()
        await until(lambda: guest_runs(machine))
        before = counter(machine)
        await until(lambda: counter(machine) != before)
        async with await GdbClient.connect(other) as client:
            assert client.was_running is (True if told else None)


@asynchronous
async def test_works_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with counting_machine("-gdb", f"tcp:127.0.0.1:{port},server=on,wait=off") as machine:
        async with await GdbClient.connect(f"127.0.0.1:{port}") as client:
            assert not guest_runs(machine)
            with pytest.raises(GdbstubBusy, match="this very process"):
                await GdbClient.connect(f"tcp:localhost:{port}")
            assert await client.read_virtual(LOOP, 4) == b"\xff\x00\xeb\xfc"
        assert guest_runs(machine)


@asynchronous
async def test_says_what_else_listens_there() -> None:
    with bare_qemu() as machine:
        with pytest.raises(NotGdbstub, match="QMP"):
            await GdbClient.connect(machine.qmp)
        with pytest.raises(SocketUnreachable, match="no such socket"):
            await GdbClient.connect(machine.folder / "none")
        async with await QmpSession.connect(machine.qmp) as session:
            assert (await commands.run_state(session)).running


@asynchronous
async def test_memory_is_that_of_the_mapped_file() -> None:
    rng = random.Random(7)
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            ram = (machine.folder / "ram").read_bytes()
            sizes = [1, 2, 8, 2047, 2048, 2049, 4096, 70_000]
            reads = [
                MemoryRead(0x100000 + rng.randrange(1 << 20), rng.choice(sizes)) for _ in range(700)
            ]
            expected = [ram[one.address : one.address + one.size] for one in reads]
            assert await client.read_many_physical(reads) == expected
            assert await client.read_many_virtual(reads) == expected  # paging is off


@asynchronous
async def test_physical_addresses_are_turned_off_again() -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        async with await GdbClient.connect(path) as client:
            await client.read_physical(Pa(0), 8)
            await client.write_physical(Pa(0x300000), b"qvmi")
        with socket.socket(socket.AF_UNIX) as stub:
            stub.connect(path)
            stub.settimeout(20)
            stub.sendall(framed("qqemu.PhyMemMode"))
            heard = b""
            while not re.search(rb"\$[01]#", heard):
                heard += stub.recv(4096)
    assert b"$0#" in heard


@asynchronous
async def test_writes_memory_and_registers() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            data = random.Random(3).randbytes(10_000)
            await client.write_physical(Pa(0x300001), data)
            with (machine.folder / "ram").open("rb") as ram:
                ram.seek(0x300001)
                assert ram.read(len(data)) == data
            await client.write_virtual(Va(0x300001), b"new")
            assert await client.read_physical(Pa(0x300001), 4) == b"new" + data[3:4]
            await client.registers.write(FIRST, "rbx", 0x12345678)
            assert (await client.registers.read(FIRST))["rbx"] == 0x12345678
            assert "EBX=12345678" in machine.monitor.human("info registers")
            with pytest.raises(UsageError, match="no register"):
                await client.registers.write(FIRST, "nonsense", 1)
            with pytest.raises(UsageError, match="does not fit"):
                await client.registers.write(FIRST, "eflags", 1 << 32)


@asynchronous
async def test_steps_one_instruction_of_one_vcpu() -> None:
    with counting_machine("-smp", "2") as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.insert(Breakpoint(LOOP))
            await client.resume()
            await client.next_stop()
            await client.remove(Breakpoint(LOOP))
            before = counter(machine)
            seen = []
            for _ in range(6):
                stop = await client.step(FIRST)
                assert stop == StopReply(TRAP, FIRST)
                seen.append((await client.registers.read(FIRST))["rip"])
            assert seen == [JUMP, LOOP] * 3
            assert counter(machine) == before + 3


@pytest.mark.parametrize("kind", [BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE])
@asynchronous
async def test_stops_at_a_breakpoint_each_time_and_steps_over_it(kind: BreakpointKind) -> None:
    here = Breakpoint(LOOP, kind)
    with counting_machine("-smp", "2") as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.insert(here)
            await client.insert(here)
            await client.resume()
            counts = []
            for _ in range(5):
                stop = await client.next_stop()
                assert stop == StopReply(TRAP, FIRST)
                assert (await client.registers.read(FIRST))["rip"] == LOOP
                counts.append(counter(machine))
                await client.resume_over(FIRST, [here])
            assert counts == list(range(counts[0], counts[0] + 5))
            await client.next_stop()
            await client.remove(here)
            await client.resume()
            before = counter(machine)
            await until(lambda: counter(machine) > before + 1000)
            # Some QEMUs tell of the first vCPU, others of the last.
            stops = {StopReply(INTERRUPTED, FIRST), StopReply(INTERRUPTED, SECOND)}
            assert await client.interrupt() in stops
        # Nothing is left of it in the guest.
        assert (machine.folder / "ram").read_bytes()[LOOP : LOOP + 4] == b"\xff\x00\xeb\xfc"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (BreakpointKind.WRITE, StopReason.WRITE_WATCHPOINT),
        (BreakpointKind.READ, StopReason.READ_WATCHPOINT),
        (BreakpointKind.ACCESS, StopReason.ACCESS_WATCHPOINT),
    ],
)
@asynchronous
async def test_stops_at_an_access_to_watched_memory(
    kind: BreakpointKind, reason: StopReason
) -> None:
    watched = Breakpoint(Va(COUNTS_AT), kind, 4)
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.insert(watched)
            for _ in range(3):
                await client.resume()
                stop = await client.next_stop()
                assert stop == StopReply(TRAP, FIRST, reason, COUNTS_AT)
            await client.remove(watched)
            await client.resume()
            before = counter(machine)
            await until(lambda: counter(machine) > before + 1000)


@asynchronous
async def test_an_interrupt_that_comes_late_is_told_of_the_breakpoint() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.insert(Breakpoint(LOOP))
            for _ in range(30):
                await client.resume()
                await until(lambda: not client.running)
                assert await client.interrupt() == StopReply(TRAP, FIRST)
                await client.resume_over(FIRST, [Breakpoint(LOOP)])
                # Now it comes before, after or together with the breakpoint.
                stop = await client.interrupt()
                assert stop in {StopReply(TRAP, FIRST), StopReply(INTERRUPTED, FIRST)}
                assert await client.read_virtual(LOOP, 4) == b"\xff\x00\xeb\xfc"
                assert client.breakpoints == {Breakpoint(LOOP)}


@asynchronous
async def test_detaching_leaves_no_breakpoint_behind() -> None:
    with counting_machine() as machine:
        path = stub_of(machine)
        client = await GdbClient.connect(path)
        for breakpoint_ in (Breakpoint(LOOP), Breakpoint(JUMP, BreakpointKind.HARDWARE)):
            await client.insert(breakpoint_)
        await client.insert(Breakpoint(Va(COUNTS_AT), BreakpointKind.WRITE, 4))
        await client.resume()
        await client.next_stop()
        await client.detach()
        before = counter(machine)
        await until(lambda: counter(machine) > before + 1000)
        assert guest_runs(machine)


@asynchronous
async def test_nothing_is_asked_of_a_guest_that_runs() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.resume()
            with pytest.raises(GuestRunning):
                await client.read_physical(Pa(0), 8)
            with pytest.raises(GuestRunning):
                await client.resume()
            assert guest_runs(machine)
            await client.interrupt()
            with pytest.raises(UsageError, match="stands still"):
                await client.interrupt()
        assert guest_runs(machine)


@asynchronous
async def test_a_stop_by_the_owner_is_told() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            await client.resume()
            machine.monitor.execute("stop")
            assert await client.next_stop() == StopReply(INTERRUPTED, FIRST)
            assert await client.read_virtual(LOOP, 4) == b"\xff\x00\xeb\xfc"


@asynchronous
async def test_a_guest_that_its_owner_let_run_shifts_no_reply() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            for _ in range(5):
                machine.monitor.execute("cont")
                with pytest.raises(GuestRunning, match="somebody let the guest run"):
                    await client.read_physical(Pa(COUNTING_LOOP), 4)
                assert await client.read_physical(Pa(COUNTING_LOOP), 4) == b"\xff\x00\xeb\xfc"
                assert await client.registers.threads() == (FIRST,)


@asynchronous
async def test_a_caller_that_was_cancelled_shifts_no_reply() -> None:
    rng = random.Random(1)
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            ram = (machine.folder / "ram").read_bytes()
            for _ in range(40):
                reads = [MemoryRead(0x100000 + n * 512, 512) for n in range(600)]
                task = asyncio.create_task(client.read_many_physical(reads))
                await asyncio.sleep(rng.random() / 200)
                task.cancel()
                at = 0x100000 + rng.randrange(4096)
                assert await client.read_physical(Pa(at), 16) == ram[at : at + 16]
            assert await client.registers.threads() == (FIRST,)


@asynchronous
async def test_several_tasks_read_at_once() -> None:
    with counting_machine() as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            ram = (machine.folder / "ram").read_bytes()

            async def read(number: int) -> None:
                for at in range(0x100000 + number, 0x100000 + number + 20):
                    assert await client.read_physical(Pa(at), 900) == ram[at : at + 900]
                    assert await client.read_virtual(Va(at), 9) == ram[at : at + 9]
                    assert (await client.registers.read(FIRST))["rax"] == COUNTS_AT

            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(read(number))


@asynchronous
async def test_the_end_of_qemu_is_told_to_everyone_who_waits() -> None:
    with counting_machine() as machine:
        client = await GdbClient.connect(stub_of(machine))
        await client.resume()
        waiting = asyncio.create_task(client.next_stop())
        await asyncio.sleep(0)
        machine.kill()
        with pytest.raises(MachineGone):
            await waiting
        assert client.ended
        with pytest.raises(MachineGone):
            await client.read_physical(Pa(0), 8)


# ------------------------------------------------------------------------------ a kernel, and gdb


def registers_by_gdb(path: str) -> list[dict[str, int]]:
    """These are the registers of each vCPU as gdb prints them; the guest runs afterwards."""
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb")
    names = [*asdict_names(), "k_gs_base"]
    script = [f"target remote {path}", "thread apply all info registers " + " ".join(names)]
    options = [word for line in script for word in ("-ex", line)]
    ended = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "set pagination off", *options],
        capture_output=True,
        text=True,
        timeout=GDB_S,
        check=True,
    )
    parts = re.split(r"^Thread (?:1\.)?(\d+) .*$", ended.stdout, flags=re.MULTILINE)[1:]
    vcpus = {
        int(number): {
            name: int(value, 16)
            for name, value in re.findall(r"^(\w+) +(0x[0-9a-f]+)", text, flags=re.MULTILINE)
        }
        for number, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return [vcpus[number] for number in sorted(vcpus)]


def lines_of_gdb(path: str, *commands: str, complaints: int = 0) -> list[str]:
    """This is what gdb prints for some commands; the guest runs afterwards.

    Its exit code is 1 when the last one was refused.
    """
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb")
    options = [word for line in (f"target remote {path}", *commands) for word in ("-ex", line)]
    ended = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "set pagination off", *options],
        capture_output=True,
        text=True,
        timeout=GDB_S,
        check=False,
    )
    assert ended.returncode == complaints
    return (ended.stdout + ended.stderr).splitlines()


@pytest.mark.parametrize(
    ("by_gdb", "by_us"),
    [
        (f"break *{LOOP:#x}", Breakpoint(LOOP)),
        (f"hbreak *{JUMP:#x}", Breakpoint(JUMP, BreakpointKind.HARDWARE)),
        (f"watch *(int*){COUNTS_AT:#x}", Breakpoint(Va(COUNTS_AT), BreakpointKind.WRITE, 4)),
        (f"awatch *(int*){COUNTS_AT:#x}", Breakpoint(Va(COUNTS_AT), BreakpointKind.ACCESS, 4)),
    ],
    ids=["software", "hardware", "write", "access"],
)
@asynchronous
async def test_breakpoints_stop_where_and_as_often_as_those_of_gdb(
    by_gdb: str, by_us: Breakpoint
) -> None:
    look = ("continue", rf'printf "at %lx after %u\n", $pc, *(unsigned*){COUNTS_AT}')
    with counting_machine() as machine:
        path = stub_of(machine)
        said = lines_of_gdb(path, "set can-use-hw-watchpoints 1", by_gdb, *look * 4)
        found = re.findall(r"^at ([0-9a-f]+) after (\d+)$", "\n".join(said), re.MULTILINE)
        theirs = [(int(pc, 16), int(count)) for pc, count in found]
        ours = []
        async with await GdbClient.connect(path) as client:
            await client.insert(by_us)
            await client.resume()
            for _ in range(4):
                await client.next_stop()
                ours.append(((await client.registers.read(FIRST))["rip"], counter(machine)))
                await client.resume_over(FIRST, [by_us])
            await client.interrupt()
    assert len(theirs) == len(ours) == 4
    assert {pc for pc, _ in theirs} == {pc for pc, _ in ours}
    # One turn of the loop from stop to stop, or the same turn told twice.
    steps = [second[1] - first[1] for first, second in pairwise(theirs)]
    assert [second[1] - first[1] for first, second in pairwise(ours)] == steps


@asynchronous
async def test_batched_reads_and_faults_of_a_kernel_are_those_of_gdb(
    guests: GuestPool, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig(gdbstub=True))
    guest.monitor.execute("stop")
    start, end = mapped_run(guest)
    rng = random.Random(9)
    spots = [rng.randrange(start, end - 600) for _ in range(60)] + [end - 8]
    reads = [MemoryRead(at, rng.randrange(16, 600)) for at in spots]
    async with await GdbClient.connect(guest.gdb_socket) as client:
        *ours, fault = await client.read_many_virtual(reads)
    files = [tmp_path / str(number) for number in range(len(ours))]
    said = lines_of_gdb(
        str(guest.gdb_socket),
        *(
            f"dump binary memory {file} {one.address:#x} {one.address + one.size:#x}"
            for file, one in zip(files, reads[:-1], strict=True)
        ),
        f"x/16xb {reads[-1].address:#x}",
        complaints=1,
    )
    assert ours == [file.read_bytes() for file in files]
    assert isinstance(fault, MemoryFault)
    assert f"Cannot access memory at address {fault.address:#x}" in said
    proof_count(len(ours))


def asdict_names() -> list[str]:
    general = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags"
    return (general + " cs ss ds es fs gs fs_base gs_base cr0 cr2 cr3 cr4 efer").split()


@asynchronous
async def test_every_vcpu_has_the_registers_that_gdb_tells(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(cpus=4, gdbstub=True))
    client = await GdbClient.connect(guest.gdb_socket)
    vcpus = await client.registers.vcpus()
    await client.leave_stopped()
    theirs = registers_by_gdb(str(guest.gdb_socket))
    assert len(vcpus) == len(theirs) == 4
    for ours, expected in zip(vcpus, theirs, strict=True):
        assert isinstance(ours, Registers)
        mine = asdict(ours) | {"eflags": ours.rflags, "k_gs_base": ours.kernel_gs_base}
        assert {name: mine[name] for name in expected} == expected
        assert len(expected) >= 30


@asynchronous
async def test_registers_are_those_of_the_human_monitor(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(gdbstub=True))
    async with await GdbClient.connect(guest.gdb_socket) as client:
        by_stub = await client.registers.vcpus()
        async with await QmpSession.connect(guest.qmp) as session:
            by_monitor = await commands.registers(session)
        for ours, theirs in zip(by_stub, by_monitor, strict=True):
            assert isinstance(ours, Registers)
            mine, expected = asdict(ours), asdict(theirs)
            silent = {name for name, value in mine.items() if value is None}
            silent |= {"kernel_gs_base"}
            assert {**mine, **dict.fromkeys(silent)} == {**expected, **dict.fromkeys(silent)}


@asynchronous
async def test_an_unmapped_range_is_a_fault_at_exactly_its_first_address(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(gdbstub=True))
    guest.monitor.execute("stop")
    start, end = mapped_run(guest)
    async with await GdbClient.connect(guest.gdb_socket) as client:
        whole = await client.read_virtual(start, end - start)
        assert await client.read_virtual(Va(end - 1000), 1000) == whole[-1000:]
        reads = [
            MemoryRead(end - 1000, 1000),
            MemoryRead(end - 1000, 1001),
            MemoryRead(end, 8),
            MemoryRead(start, end - start + 20_000),
            MemoryRead(start, 8),
        ]
        first, *faults, last = await client.read_many_virtual(reads)
        with pytest.raises(MemoryFault) as told:
            await client.read_virtual(Va(end - 8), 16)
    assert (first, last) == (whole[-1000:], whole[:8])
    assert [type(fault) for fault in faults] == [MemoryFault] * 3
    assert [fault.address for fault in faults if isinstance(fault, MemoryFault)] == [end] * 3
    assert (told.value.address, told.value.size, told.value.kind) == (end, 16, "virtual")


def mapped_run(guest: Guest) -> tuple[Va, Va]:
    """These are the pages from the interrupt table on, up to the first that QEMU says is not mapped."""
    base = re.findall(
        r"^IDT= +([0-9a-f]{16}) ", guest.monitor.human("info registers"), re.MULTILINE
    )
    start = end = int(base[0], 16)
    while "Cannot access memory" not in guest.monitor.human(f"x /1xb {end:#x}"):
        end += 0x1000
    assert end > start
    return Va(start), Va(end)


# ----------------------------------------------------------------------------------------- aarch64


@asynchronous
async def test_aarch64_registers_are_those_of_the_human_monitor() -> None:
    if shutil.which("qemu-system-aarch64") is None:
        pytest.skip("needs qemu-system-aarch64")
    arguments = ("-machine", "virt", "-cpu", "max", "-m", "64", "-smp", "2", "-S")
    with bare_qemu(*arguments, program="qemu-system-aarch64") as machine:
        async with await GdbClient.connect(stub_of(machine)) as client:
            assert (await client.registers.description()).architecture == "aarch64"
            for number in range(31):
                await client.registers.write(ThreadId(2, 1), f"x{number}", 0x1000 + number)
            # SCTLR_EL1 and the like are read-only over this stub; sp is not.
            await client.registers.write(ThreadId(2, 1), "sp", 0xABC0)
            first, second = await client.registers.vcpus()
            assert isinstance(second, Aarch64)
            text = machine.monitor.human("info registers -a")
    assert [first.index, second.index] == [0, 1]
    dump = text.partition("CPU#1")[2]
    printed = dict(re.findall(r"\b(X\d\d|SP|PC)=([0-9a-f]{16})", dump))
    assert second.x == tuple(int(printed[f"X{number:02}"], 16) for number in range(31))
    assert second.x == tuple(range(0x1000, 0x1000 + 31))
    assert (second.sp, second.pc) == (0xABC0, int(printed["PC"], 16))
    assert int(re.findall(r"PSTATE=([0-9a-f]{8,16})", dump)[0], 16) == second.cpsr
    system = asdict(second)
    missing = {name for name, value in system.items() if value is None}
    # QEMU 7.2 keeps the first from its gdbstub: it depends on the interrupt controller.
    assert missing <= {"id_aa64pfr0_el1"}
    # Arm ARM D19.2: reset values that QEMU's `max` model must have: 48-bit physical addresses or more.
    assert system["id_aa64mmfr0_el1"] & 0xF >= 5
    assert system["sctlr_el1"] & 1 == 0
