"""gdb on live guests: the names are the guest's own, and whatever is killed the guest runs on."""

import asyncio
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import qvmi
from qvmi.errors import (
    GdbCommandFailed,
    GdbError,
    GdbstubBusy,
    GdbTimeout,
    PauseError,
    PolicyDenied,
    UsageError,
)
from qvmi.gdbstub import gdb_session
from qvmi.policy import OBSERVE, Grant
from tests.asynchronous import asynchronous
from tests.command_line import DEADLINE_S, QVMI, environment, qvmi_on_terminal
from tests.command_line import qvmi as qvmi_command
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import guest_ram
from tests.proofs import proof_size
from tests.repository.tree import ROOT

FORK: Final = "kernel_clone"
CALLERS: Final = re.compile(r"__(do|se|x64)_sys_(clone3?|v?fork)|kernel_thread|user_mode_thread")
LINE: Final = re.compile(r"([0-9a-f]{16}) ([A-Za-z]) (\S+)(?:\s+\[(\w+)\])?")
ENDS_S: Final = 30.0
POLL_S: Final = 0.005
SHARE: Final = 800
"""Every so-many line of /proc/kallsyms is compared."""


def stubs(guest: Guest | BareQemu) -> list[str]:
    """These are the gdbstubs that QEMU has, by its own account."""
    devices: list[dict[str, Any]] = guest.monitor.execute("query-chardev")
    return [device["filename"] for device in devices if device["label"] == "gdb"]


def kallsyms(guest: Guest, command: str) -> list[tuple[int, str, str]]:
    """These are lines of the guest's own /proc/kallsyms: address, name, module."""
    lines = guest.run(command).decode("ascii").splitlines()
    found = [match for match in map(LINE.fullmatch, lines) if match]
    return [(int(match[1], 16), match[3], match[4] or "") for match in found]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ENDS_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


def forks(guest: Guest) -> int:
    """This is how many tasks the guest says it has ever made."""
    (line,) = (one for one in guest.run("cat /proc/stat").splitlines() if b"processes" in one)
    return int(line.split()[1])


@pytest.fixture(scope="module", params=["6.1", "7.x"])
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest whose modules lie in one piece each, and one where they lie in several."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))


@pytest.fixture
def stormy(guest: Guest) -> Iterator[Guest]:
    guest.start_storm()
    yield guest
    guest.stop_storm()


# ------------------------------------------------------------------------------- what gdb is told


@asynchronous
async def test_a_breakpoint_by_name_is_hit_where_the_guest_says_the_name_is(stormy: Guest) -> None:
    ((at, _, _),) = kallsyms(stormy, f"grep ' {FORK}$' /proc/kallsyms")
    async with qvmi.attach(stormy.qmp) as machine:
        text = machine.kernel_space.read(qvmi.Va(at), 4096)
        async with machine.gdb() as gdb:
            assert gdb.missing == ()
            assert FORK in (await gdb.execute(f"info symbol {at:#x}")).output
            await gdb.execute(f"break {FORK}")
            reply = await gdb.execute("continue")
            assert reply.stop is not None
            assert (reply.stop.reason, reply.stop.function) == ("breakpoint-hit", FORK)
            # gdb may step over an `endbr64`, of 4 bytes, to what it takes for the body.
            assert reply.stop.address in {at, at + 4}
            first, second, *_ = await gdb.backtrace()
            assert (first.level, first.function) == (0, FORK)
            assert CALLERS.match(second.function), second
            assert (await gdb.execute("bt 1")).output.startswith(f"#0  0x{first.address:016x} in")
            code = (await gdb.execute(f"x/150i {FORK}")).output
            assert re.search(r"call +0x[0-9a-f]+ <copy_process>", code)
        assert machine.kernel_space.read(qvmi.Va(at), 4096) == text
    assert stormy.monitor.running()
    assert not stubs(stormy)
    before = forks(stormy)
    assert forks(stormy) > before


@pytest.mark.parametrize("kernel", KERNELS)
@asynchronous
async def test_a_backtrace_is_the_one_that_the_guest_itself_makes(
    guests: GuestPool, kernel: str, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig(kernel=kernel))
    async with qvmi.attach(guest.qmp) as machine, machine.gdb() as gdb:
        # The guest's own unwinder answers; where it begins to, gdb looks at the same stack.
        await gdb.execute("break stack_trace_save_tsk")
        asking = asyncio.create_task(asyncio.to_thread(guest.run, "cat /proc/self/stack"))
        reply = await gdb.execute("continue")
        assert reply.stop is not None
        assert reply.stop.function == "stack_trace_save_tsk"
        frames = await gdb.backtrace()
        await gdb.execute("delete")
        going = asyncio.create_task(gdb.execute("continue"))
        text = await asking
        going.cancel()
    theirs = re.findall(r"\] ([^+\s]+)\+0x", text.decode())
    ours = [frame.function for frame in frames]
    assert theirs[0] == "proc_pid_stack"
    assert theirs[-1].startswith("entry_SYSCALL_64")  # registers lie there: gdb gives it no name
    assert ours[1 : len(theirs)] == theirs[:-1]
    assert ours[len(theirs)] == "<signal handler called>"
    assert frames[len(theirs) + 1].address >> 63 == 0
    proof_count(len(theirs))


@asynchronous
async def test_names_are_those_of_the_guests_own_proc_kallsyms(
    guest: Guest, proof_count: Callable[[int], None]
) -> None:
    loaded = {module.name for module in guest.truth().modules}
    rows = kallsyms(guest, f"busybox awk 'NR % {SHARE} == 0' /proc/kallsyms")
    rows += kallsyms(guest, "grep -F '[' /proc/kallsyms | busybox awk 'NR % 20 == 0'")
    asked = [row for row in rows if row[0] >> 63 and (not row[2] or row[2] in loaded)]
    # gdb leaves out what an assembler calls a local label.
    asked = [row for row in asked if not row[1].startswith(".L")]
    others: list[tuple[int, str]] = []
    async with qvmi.attach(guest.qmp) as machine, machine.gdb() as gdb:
        for address, name, module in asked:
            said = (await gdb.execute(f"info symbol {address:#x}")).output
            match = re.fullmatch(r"(\S+) in section (\S+)\n", said)
            assert match, (name, said)
            assert not module or match[2] == module
            if match[1] != name:
                others.append((address, match[1]))
    # Several names may be at one address; then gdb tells one of them.
    for address, name in others:
        known = kallsyms(guest, f"grep '^{address:016x} ' /proc/kallsyms")
        assert name in {row[1] for row in known}
    assert len({row[2] for row in asked}) > 3
    assert len(others) < len(asked) // 2
    proof_count(len(asked))


@pytest.mark.parametrize(
    "config",
    [
        GuestConfig(kernel="6.1", append="pti=on"),
        GuestConfig(kernel="6.12", cpu_flags="la57=off"),
        GuestConfig(kernel="5.10", append="nokaslr", ram="private"),
    ],
    ids=lambda config: config.name,
)
@asynchronous
async def test_whatever_mode_the_vcpus_are_in(guests: GuestPool, config: GuestConfig) -> None:
    guest = guests.restore(config)
    ((at, _, _),) = kallsyms(guest, f"grep ' {FORK}$' /proc/kallsyms")
    guest.start_storm()
    guest.start_spinning()
    async with qvmi.attach(guest.qmp) as machine:
        for _ in range(2):
            async with machine.gdb() as gdb:
                # The page tables of user mode may lack the function: then only its address will do.
                await gdb.execute(f"break *{FORK}")
                stop = (await gdb.execute("continue", timeout_s=ENDS_S)).stop
                assert stop is not None
                assert (stop.function, stop.address) == (FORK, at)
    assert guest.monitor.running()


def test_firmware_alone_has_no_names_and_registers_all_the_same() -> None:
    with bare_qemu() as machine:
        done = qvmi_command(
            "--qmp", str(machine.qmp), "gdb", "--batch", "-ex", "info registers cs rip"
        )
        assert machine.monitor.running()
        assert not stubs(machine)
    assert re.search(r"^rip +0x[0-9a-f]+", done.stdout, re.MULTILINE)
    assert "no symbols" in done.stderr
    assert done.returncode == 0


# ------------------------------------------------------------------------------ what a hostile guest says


def test_a_hostile_name_is_neither_a_command_nor_an_escape(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    rows = kallsyms(guest, "grep -F '[nf_tables]' /proc/kallsyms | grep ' t nf_tables_'")
    address, name, _ = max(rows, key=lambda row: len(row[1]))
    hostile = b"\x1b]0;\x07\x9b31m`id`;!id\r".ljust(len(name), b"\x1b")[: len(name)]
    guest.monitor.execute("stop")
    with guest_ram(guest) as ram:
        spot = -1
        while (spot := ram.buffer.find(b"\0" + name.encode() + b"\0", spot + 1)) >= 0:
            ram.write(qvmi.Pa(spot + 1), hostile)
    asked = ("-ex", f"info symbol {address:#x}", "-ex", f"x/2i {address:#x}")
    done = subprocess.run(
        (*QVMI, "--qmp", guest.qmp, "--no-cache", "gdb", "--batch", *asked),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert re.search(rb"^__0___x9b31m_id___id_+ in section nf_tables$", done.stdout, re.MULTILINE)
    assert not re.search(rb"[^\n\t\x20-\x7e]", done.stdout + done.stderr)
    document = qvmi_command("--qmp", guest.qmp, "--no-cache", "--json", "gdb", *asked)
    assert "u001b" not in document.stdout
    assert not guest.monitor.running()


# ------------------------------------------------------------------------------------- what is refused


@asynchronous
async def test_nothing_is_written_unless_that_was_granted(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp) as machine:
        at = machine.symbols.find("init_task")
        assert at is not None
        before = machine.kernel_space.read(at, 8)
        async with machine.gdb() as gdb:
            with pytest.raises(GdbCommandFailed, match="Cannot access memory"):
                await gdb.execute(f"set var *(char*){at:#x} = 7")
            with pytest.raises(GdbCommandFailed, match="Could not write register"):
                await gdb.execute("set $rax = 7")
            assert "not granted" in (await gdb.execute("monitor quit")).output
            await gdb.execute("kill")  # which would end QEMU
        assert machine.kernel_space.read(at, 8) == before
        assert guest.monitor.running()
        with pytest.raises(PolicyDenied, match="write"):
            machine.gdb(may_write=True)
    async with (
        qvmi.attach(guest.qmp, policy=OBSERVE.plus(Grant.WRITE)) as machine,
        machine.gdb(may_write=True) as gdb,
    ):
        rax = (await gdb.execute("p/x $rax")).output.split()[-1]
        await gdb.execute("set $rax = 0x1234567")
        printed = guest.monitor.human("info registers")
        assert "RAX=0000000001234567" in printed
        await gdb.execute(f"set $rax = {rax}")
        assert "VM status" in (await gdb.execute("monitor info status")).output
    assert guest.monitor.running()


@asynchronous
async def test_a_guest_that_its_owner_paused_stays_paused(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        async with qvmi.attach(guest.qmp) as machine:
            async with machine.gdb() as gdb:
                assert (await gdb.backtrace())[0].level == 0
            assert not guest.monitor.running()
            async with machine.gdb() as gdb:
                await gdb.execute("stepi")
                await gdb.execute("detach")
            assert not guest.monitor.running()
    finally:
        guest.monitor.execute("cont")


@asynchronous
async def test_who_else_would_stop_the_guest_is_told_and_harms_nothing(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp) as machine:
        async with machine.gdb() as gdb:
            with pytest.raises(PauseError, match="gdb has the guest"):
                await machine.paused().__aenter__()
            with pytest.raises(PauseError, match="gdb has the guest"):
                await machine.breakpoints(FORK).__aenter__()
            with pytest.raises(GdbstubBusy):
                await machine.gdb().__aenter__()
            assert (await gdb.execute("p 6 * 7")).output == "$1 = 42\n"
        async with machine.paused():
            with pytest.raises(PauseError, match="within paused"):
                await machine.gdb().__aenter__()
        async with machine.breakpoints("do_exit"):
            with pytest.raises(GdbstubBusy):
                await machine.gdb().__aenter__()
        async with machine.paused():
            assert not guest.monitor.running()
    assert guest.monitor.running()


def test_a_debugger_that_holds_the_stub_is_told_of() -> None:
    with bare_qemu() as machine:
        place = str(machine.folder / "stub")
        machine.monitor.human(f"gdbserver unix:{place},server=on,wait=off")
        with subprocess.Popen(
            ["gdb", "-nx", "-q", "-ex", f"target remote {place}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            wait_until(lambda: not machine.monitor.running(), "gdb does not attach")
            done = qvmi_command("--qmp", str(machine.qmp), "gdb", "--batch", "-ex", "bt")
            holder.communicate(b"detach\nquit\n")
        assert done.returncode == 3
        assert re.search(r"held by gdb\S* \(pid \d+\)", done.stderr)


def test_a_host_without_gdb_is_told_what_to_install(guest: Guest) -> None:
    done = qvmi_command("--qmp", guest.qmp, "gdb", "--batch", "-ex", "bt", PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (2, "")
    assert "apt install gdb" in done.stderr
    assert guest.monitor.running()
    assert not stubs(guest)


# ---------------------------------------------------------------------------------------- commands, typed


@asynchronous
async def test_a_command_is_broken_off_in_time_and_the_next_one_works(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with qvmi.attach(guest.qmp) as machine, machine.gdb() as gdb:
        with pytest.raises(GdbTimeout):
            await gdb.execute("continue", timeout_s=0.2)
        assert (await gdb.execute("p 1")).output == "$1 = 1\n"
        assert not guest.monitor.running()
        going = asyncio.create_task(gdb.execute("continue"))
        while not guest.monitor.running():  # noqa: ASYNC110 - QEMU tells nobody else
            await asyncio.sleep(POLL_S)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert (await gdb.execute("p 2")).output == "$2 = 2\n"
        assert not guest.monitor.running()
        with pytest.raises(GdbTimeout):
            await gdb.execute("x/4000000xb &_text", timeout_s=0.2)
        monkeypatch.setattr(gdb_session, "MAX_OUTPUT", 1000)
        reply = await gdb.execute("info functions ^vfs_")
        assert (reply.truncated, len(reply.output)) == (True, 1000)
        with pytest.raises(GdbCommandFailed, match="Undefined command"):
            await gdb.execute("nonsense")
        with pytest.raises(UsageError, match="one line"):
            await gdb.execute("p 1\nquit")
        assert (await gdb.execute(r'echo a"b\n')).output == 'a"b\n'
    assert guest.monitor.running()


@asynchronous
async def test_a_gdb_that_ends_is_told_and_the_guest_runs(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp) as machine:
        async with machine.gdb() as gdb:
            with pytest.raises(GdbError):
                await gdb.execute("quit")
            with pytest.raises(GdbError, match="ended"):
                await gdb.execute("p 1")
        assert guest.monitor.running()


# ------------------------------------------------------------------------------------ kill -9 of anything


@contextmanager
def gdb_at_work(guest: Guest) -> Iterator["subprocess.Popen[bytes]"]:
    """This is a `qvmi gdb` whose guest comes to a breakpoint again and again."""
    again = [word for _ in range(400) for word in ("-ex", "continue")]
    command = (*QVMI, "--qmp", guest.qmp, "gdb", "-ex", f"break {FORK}", *again, "--", "-nx")
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        try:
            line = b"nothing"
            while line and not line.startswith(b"Breakpoint 1"):
                line = program.stdout.readline()
            assert line
            yield program
        finally:
            program.kill()


def children(pid: int) -> dict[int, str]:
    """These are the processes that a process has started, by name."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/comm").read_text().strip() for child in pids}


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("victim", ["gdb", "qvmi", "both"])
def test_a_kill_at_any_moment_leaves_the_guest_running_without_a_breakpoint(
    guests: GuestPool, victim: str, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig())
    guest.start_storm()
    rng = random.Random(5)
    kills = proof_size(ci=3, full=50)
    for _ in range(kills):
        with gdb_at_work(guest) as program:
            (gdb,) = (pid for pid, name in children(program.pid).items() if name == "gdb")
            time.sleep(rng.random() / 5)
            if victim != "gdb":
                os.kill(program.pid, signal.SIGKILL)
            if victim != "qvmi":
                with suppress(ProcessLookupError):  # it ended along with qvmi
                    os.kill(gdb, signal.SIGKILL)
            else:
                wait_until(lambda gdb=gdb: not is_there(gdb), "gdb outlives qvmi")  # type: ignore[misc]
            program.communicate()
        wait_until(lambda: guest.monitor.running() and not stubs(guest), "it is not made good")
        before = forks(guest)
        assert forks(guest) > before
        assert guest.monitor.running()
    done = qvmi_command("--qmp", guest.qmp, "gdb", "--batch", "-ex", "info symbol vfs_read")
    assert (done.returncode, "vfs_read in section .text" in done.stdout) == (0, True)
    proof_count(kills)


# ------------------------------------------------------------------------------------------- on a terminal


def test_on_a_terminal_ctrl_c_stops_the_guest_and_ends_nothing(guest: Guest) -> None:
    with qvmi_on_terminal("--qmp", guest.qmp, "gdb", "--", "-nx") as screen:
        for number in (1, 2):
            screen.wait_for(b"(gdb) ")
            screen.screen = b""
            screen.type(b"continue\n")
            screen.wait_for(b"Continuing.")
            wait_until(guest.monitor.running, "it does not run")
            screen.type(b"\x03")
            screen.wait_for(b"SIGINT")
            wait_until(lambda: not guest.monitor.running(), "it does not stop")
            screen.type(b"p 40 + %d\n" % number)
            screen.wait_for(b"= 4%d" % number)
        screen.type(b"\x03")  # at the prompt, it is a new line
        screen.wait_for(b"Quit")
        screen.type(b"info symbol vfs_read\n")
        screen.wait_for(b"vfs_read in section .text")
        screen.type(b"quit\n")
        screen.wait_for(b"(y or n)")
        screen.type(b"y\n")
        assert screen.end() == 0
        assert b"Traceback" not in screen.screen
    assert guest.monitor.running()
    assert not stubs(guest)


def test_no_folder_is_left_behind(guests: GuestPool, tmp_path: Path) -> None:
    guest = guests.restore(GuestConfig())
    done = qvmi_command("--qmp", guest.qmp, "gdb", "--batch", "-ex", "bt 1", TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())
    assert tempfile.gettempdir() != str(tmp_path)
