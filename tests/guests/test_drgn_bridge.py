"""drgn's own helpers over a guest without debug information: two engines and the guest's word agree.

drgn reads the kernel's structures by its own code; only types, symbols and memory come from qvmi.
"""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Final

import drgn
import pytest
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.fs import d_path, for_each_file, for_each_mount, mount_dst, mount_fstype
from drgn.helpers.linux.mm import cmdline, for_each_vma
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.printk import get_dmesg
from drgn.helpers.linux.sched import task_state_to_char
from drgn.helpers.linux.timekeeping import uptime

import qvmi
from qvmi.errors import QvmiError, UsageError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.btf import BtfKind
from tests.asynchronous import asynchronous
from tests.command_line import DEADLINE_S, QVMI, environment, qvmi_on_terminal
from tests.command_line import qvmi as qvmi_command
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.repository.tree import ROOT

LOADABLE: Final = "ifb"
"""A module that the guests carry and do not load."""
RENAMED: Final = b"title"
"""Its title goes on where its environment was; the kernel follows it there, drgn's helper does not."""
LEAST_COMMAND_LINES: Final = 40
MOVES_S: Final = 30.0
"""A guest's clock ticks a hundred times a second; a loaded host delays it."""
LOG_LINES: Final = 40
OCTAL: Final = re.compile(rb"\\([0-7]{3})")


Row = tuple[int, int, int, int, int, str, str]


def tasks_by_drgn(program: drgn.Program) -> set[Row]:
    return {
        (
            task.pid.value_(),
            task.tgid.value_(),
            task.real_parent.tgid.value_(),
            task.cred.uid.val.value_(),
            task.cred.gid.val.value_(),
            shown_name(task.comm.string_()),
            task_state_to_char(task),
        )
        for task in for_each_task(program)
        if task.pid == task.tgid and task.pid
    }


def tasks_by_views(guest: qvmi.GuestOS) -> set[Row]:
    return {
        (row.pid, row.tgid, row.ppid, row.uid, row.gid, row.name, row.state)
        for row in guest.processes()
    }


@asynchronous
async def test_the_tasks_of_one_moment_are_those_of_the_native_view(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, machine.paused():
        by_drgn, by_views = tasks_by_drgn(machine.drgn()), tasks_by_views(machine.guest)
    assert by_drgn == by_views
    proof_count(len(by_drgn))


@asynchronous
async def test_tasks_and_modules_are_those_that_the_guest_tells(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    truth = guest.settled_truth()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        seen = {row[:6] for row in tasks_by_drgn(program)}
        modules = [module.name.string_().decode() for module in for_each_module(program)]
        arguments = {task.pid: cmdline(find_task(program, task.pid)) for task in truth.processes}
    users = [task for task in truth.processes if not task.kernel_thread]
    assert {
        (task.pid, task.tgid, task.ppid, task.uid, task.gid, shown_name(task.name))
        for task in users
    } <= seen
    assert modules == [module.name for module in truth.modules]
    told = {
        task.pid: task.command_line.split(b"\0")[:-1]
        for task in users
        if task.command_line and task.name != RENAMED
    }
    assert len(told) > LEAST_COMMAND_LINES
    assert {pid: arguments[pid] for pid in told} == told
    proof_count(len(users) + len(modules))


@asynchronous
async def test_mounts_files_and_mappings_are_those_of_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    lines = guest.run("cat /proc/1/mounts").splitlines()
    links = guest.run('for f in /proc/1/fd/*; do echo "${f##*/} $(readlink $f)"; done').splitlines()
    maps = guest.run("cat /proc/1/maps").splitlines()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        mounts = [(mount_dst(one), mount_fstype(one)) for one in for_each_mount(program)]
        init = find_task(program, 1)
        files = {fd: d_path(file.f_path) for fd, file in for_each_file(init)}
        areas = [(vma.vm_start.value_(), vma.vm_end.value_()) for vma in for_each_vma(init.mm)]
    told = [(unescaped(line.split()[1]), line.split()[2]) for line in lines]
    assert [one for one in mounts if one[1] != b"nullfs"] == told
    told_files = {int(fd): path for fd, _, path in (line.partition(b" ") for line in links)}
    # What it prints goes through a pipe that is there only meanwhile.
    assert files == {fd: path for fd, path in told_files.items() if path.startswith(b"/")}
    spans = [line.split()[0].split(b"-") for line in maps if not line.endswith(b"[vsyscall]")]
    assert areas == [(int(start, 16), int(end, 16)) for start, end in spans]
    proof_count(len(mounts) + len(files) + len(areas))


def unescaped(path: bytes) -> bytes:
    """This is a path of /proc/mounts, which writes blanks and backslashes in octal."""
    return OCTAL.sub(lambda found: bytes([int(found[1], 8)]), path)


@asynchronous
async def test_the_log_is_the_guests_own(guest: Guest, profiles: Path) -> None:
    told = guest.run("busybox dmesg").splitlines()[:LOG_LINES]
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        seen = get_dmesg(machine.drgn()).splitlines()[:LOG_LINES]
    assert [line.rstrip() for line in seen] == [line.rstrip() for line in told]


@asynchronous
async def test_symbols_of_kernel_and_modules_are_found_both_ways(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    known = guest.kallsyms().addresses
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        found = {name: program.symbol(name).address for name in known}
        rows = [
            row
            for row in machine.guest.module_symbols()
            if row.type in "tT" and row.name[:1] != "$"
        ]
        rows = rows[::250]
        for row in rows:
            assert row.address in {one.address for one in program.symbols(row.name)}
            nearest = machine.guest.nearest(row.address)
            assert nearest is not None
            assert program.symbol(row.address + 1).name == nearest.name
        schedule = program.symbol("schedule")
        assert program.symbol(schedule.address + schedule.size - 1).name == "schedule"
        assert program.function("schedule").address_ == schedule.address
        with pytest.raises(LookupError):
            program.symbol("no_such_symbol")
        with pytest.raises(LookupError):
            program.symbol(0x1000)
    assert found == known
    proof_count(len(found) + len(rows))


@asynchronous
async def test_clock_cpus_and_types_of_modules_are_there(guest: Guest, profiles: Path) -> None:
    before = float(guest.run("cat /proc/uptime").split()[0])
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        seen = uptime(program)
        cpus = list(for_each_online_cpu(program))
        sizes = dict(structs_of_modules(machine.guest))
        seen_sizes = {name: drgn.sizeof(program.type(f"struct {name}")) for name in sizes}
        running = {per_cpu(program["runqueues"], cpu).curr.pid.value_() for cpu in cpus}
    assert before - 1 < seen <= float(guest.run("cat /proc/uptime").split()[0]) + 1
    assert cpus == list(range(guest.config.cpus))
    assert all(pid >= 0 for pid in running)
    assert seen_sizes == sizes
    assert bool(sizes) == (guest.config.kernel != "5.10")  # which keeps no BTF of modules


def structs_of_modules(guest: LinuxGuest) -> Iterator[tuple[str, int]]:
    """These are the name and size of one struct of each module that the kernel itself does not have."""
    for module in guest.module_types():
        base = module.btf.base
        records = (module.btf.type(one) for one in module.btf.own_ids())
        own = (
            (record.name, record.size_or_type)
            for record in records
            if record.kind is BtfKind.STRUCT
            and record.name
            and base
            and not base.find_compound(record.name)
        )
        yield from islice(own, 1)


@asynchronous
async def test_nothing_is_stale(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        first = program["jiffies_64"].value_()
        deadline = time.monotonic() + MOVES_S
        while program["jiffies_64"].value_() == first:
            assert time.monotonic() < deadline
        before = [module.name.string_().decode() for module in for_each_module(program)]
        guest.ask(f"load {LOADABLE}")
        during = [module.name.string_().decode() for module in for_each_module(program)]
        symbol = next(row.name for row in machine.guest.module_symbols() if row.module == LOADABLE)
        assert program.symbols(symbol)
        guest.ask(f"unload {LOADABLE}")
        assert during == [LOADABLE, *before]
        assert [module.name.string_().decode() for module in for_each_module(program)] == before


@asynchronous
async def test_a_program_of_a_pause_ends_with_it(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        async with machine.paused():
            program = machine.drgn()
            assert program["init_task"].comm.string_() == b"swapper/0"
        with pytest.raises(QvmiError):
            program["init_task"].comm.string_()
        live = machine.drgn()
    with pytest.raises((drgn.FaultError, QvmiError)):
        live["init_task"].comm.string_()


@asynchronous
async def test_memory_that_is_not_there_is_a_fault_of_drgns(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        program = machine.drgn()
        with pytest.raises(drgn.FaultError):
            program.read(0xDEAD_0000_0000, 8)
        with pytest.raises(drgn.FaultError):
            program.read(1 << 50, 8, physical=True)


def test_a_dump_is_looked_at_in_the_same_way(
    guest: Guest, profiles: Path, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        machine.dump(tmp_path / "core")
    with qvmi.open_dump(tmp_path / "core", cache=profiles) as dump:
        program = dump.drgn()
        by_drgn, by_views = tasks_by_drgn(program), tasks_by_views(dump.guest)
        assert not program.flags & drgn.ProgramFlags.IS_LIVE
    assert by_drgn == by_views
    proof_count(len(by_drgn))


# --------------------------------------------------------------------------------- what can go wrong


@pytest.fixture(scope="module")
def one(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.12"))


@asynchronous
async def test_after_a_reset_nothing_is_answered(guests: GuestPool, profiles: Path) -> None:
    machine_of_its_own = guests.restore(GuestConfig("6.12"))
    machine_of_its_own.monitor.execute("set-action", reboot="reset")
    async with qvmi.attach(machine_of_its_own.qmp, cache=profiles) as machine:
        program = machine.drgn()
        before = machine.epoch
        machine_of_its_own.monitor.execute("system_reset")
        async with asyncio.timeout(MOVES_S):
            while machine.epoch == before:
                await machine.run_state()
        with pytest.raises(qvmi.StaleView):
            program["init_task"].comm.string_()


@asynchronous
async def test_without_drgn_the_extra_is_named(
    one: Guest, profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with qvmi.attach(one.qmp, cache=profiles) as machine:
        monkeypatch.setitem(sys.modules, "drgn", None)
        with pytest.raises(UsageError, match=r"qvmi\[drgn\]"):
            machine.drgn()


# ------------------------------------------------------------------------------------ the command


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "drgn-cache"))


COMM: Final = 'print(prog["init_task"].comm.string_().decode())'


def test_code_is_run_on_the_live_guest(one: Guest) -> None:
    done = qvmi_command("--qmp", one.qmp, "drgn", "-c", COMM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "swapper/0\n", "")


def test_a_script_has_its_arguments_and_the_helpers(one: Guest, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom drgn.helpers.linux import find_task\n"
        "print(find_task(prog, int(sys.argv[1])).comm.string_().decode(), sys.argv[2:])\n"
    )
    done = qvmi_command("--qmp", one.qmp, "drgn", str(script), "1", "--json", "x")
    assert (done.returncode, done.stdout) == (0, "init ['--json', 'x']\n")


def test_a_dump_is_asked_by_the_same_code(one: Guest, tmp_path: Path) -> None:
    assert qvmi_command("--qmp", one.qmp, "dump", str(tmp_path / "core")).returncode == 0
    done = qvmi_command("--dump", str(tmp_path / "core"), "drgn", "-c", COMM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "swapper/0\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("drgn", "-c", "1 / 0"), 4, "ZeroDivisionError"),
        (("drgn", "-c", 'prog["no_such_thing"]'), 4, "no_such_thing"),
        (("drgn", "-c", "raise SystemExit(3)"), 4, "ended with 3"),
        (("drgn", "-c", "raise SystemExit"), 0, ""),
        (("drgn", "-c", "pass", "script.py"), 2, "which of them"),
        (("--json", "drgn", "-c", "pass"), 2, "its own"),
        (("drgn", "no/such/script.py"), 4, "no/such/script.py"),
    ],
)
def test_code_that_fails_says_so_and_the_guest_runs_on(
    one: Guest, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = qvmi_command("--qmp", one.qmp, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert one.monitor.running()


def test_a_traceback_begins_in_the_user_s_code(one: Guest, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("def look():\n    1 / 0\n\n\nlook()\n")
    for arguments, first in ((("-c", "1 / 0"), "<code>"), ((str(script),), str(script))):
        done = qvmi_command("--qmp", one.qmp, "drgn", *arguments)
        head, title, place, *_ = done.stderr.splitlines()
        assert head == "qvmi: the code failed: division by zero"
        assert title == "  Traceback (most recent call last):"
        assert place.startswith(f'    File "{first}", line ')


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_that_what_code_prints_cannot_be_written_is_no_failure_of_the_code(
    one: Guest, where: str, why: str, unbuffered: str
) -> None:
    words = [*QVMI, "--qmp", one.qmp, "drgn", "-c", "print('x' * 100_000)"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {where}', *words],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert done.stderr == f"qvmi: the output cannot be written: {why}\n"
    assert one.monitor.running()


def test_what_is_typed_is_answered_line_by_line(one: Guest) -> None:
    with qvmi_on_terminal("--qmp", one.qmp, "drgn") as screen:
        screen.wait_for(b"helpers.linux import *\r\n>>> ")  # its banner has such marks, too
        screen.type(b'prog["init_task"].pid.value_() + 41 + 1\r')
        screen.wait_for(b"\r\n42\r\n>>> ")
        screen.type(b"\x04")
        assert screen.end() == 0
