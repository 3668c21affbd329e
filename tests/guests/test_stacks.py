"""The kernel stacks that are seen are those of the guest's own /proc/PID/stack, wherever a task stands."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import pytest

import qvmi
from qvmi import Listing, Process
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import StackFrame
from tests.command_line import qvmi as run_qvmi
from tests.command_line import qvmi_document
from tests.guests.aarch64_guests import EVERY
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

LOOKS: Final = 25
"""Kernel threads wake at any moment: a task counts once it has stood still between two answers."""
DEADLINE_S: Final = 120.0
"""For a busy task to be met in an interrupt, which takes some ten pauses."""
OUTERMOST: Final = ("entry_SYSCALL_64", "ret_from_fork", "asm_")
"""How the last function of a whole stack is called: a system call, a kernel thread, an exception."""
FUSE: Final = (
    "mkdir /tmp/m; exec 3<>/dev/fuse;"
    " mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none /tmp/m;"
    " (stat /tmp/m >/dev/null 2>&1 </dev/null & echo $!)"
)
"""A process that waits for an answer to be given by nobody, within a module on older kernels."""
BUSY: Final = "(dd if=/dev/zero of=/dev/null bs=64k >/dev/null 2>&1 </dev/null & echo $!)"
CONFIGS: Final = [*map(GuestConfig, KERNELS), *EVERY]

Range = tuple[int, int]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda one: f"{one.kernel}{one.cpu_flags}")
def anyone(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest of every kernel of both architectures."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


def _scheduler(guest: Guest) -> Range:
    """These are the addresses of what /proc/PID/stack leaves out (``in_sched_functions``)."""
    return _section(guest, "sched")


def _section(guest: Guest, name: str) -> Range:
    """These are the addresses of a part of the kernel's code, by the guest's own names."""
    lines = guest.run(f"grep -w __{name}_text_[a-z]* /proc/kallsyms").decode().splitlines()
    found = {name: int(address, 16) for address, _, name in map(str.split, lines)}
    return found[f"__{name}_text_start"], found[f"__{name}_text_end"]


def _seen(listing: Listing[StackFrame], scheduler: Range) -> list[str]:
    """This is a stack as the kernel prints it, but for the sizes of functions."""
    assert [row.number for row in listing] == list(range(len(listing)))
    assert all(row.reliable for row in listing)
    return [
        f"{row.symbol}+{row.offset:#x}" + (f" [{row.module}]" if row.module else "")
        for row in listing
        if not scheduler[0] <= row.address < scheduler[1]
    ]


def _true(text: str) -> list[str]:
    lines = (line.removeprefix("[<0>] ") for line in text.splitlines())
    return [re.sub(r"/0x[0-9a-f]+", "", line) for line in lines]


def test_equal_proc_for_every_process(
    anyone: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    scheduler = _scheduler(anyone)
    agreed: set[int] = set()
    with qvmi.attach_sync(anyone.qmp, cache=profiles) as machine:
        true = anyone.proc("stack")
        wrong: dict[int, object] = {}
        for _ in range(LOOKS):
            processes = machine.guest.processes()
            seen = {row.pid: machine.guest.stack(row) for row in processes}
            before, true = true, anyone.proc("stack")
            # Process 1 is the one that reads the files.
            still = {pid for pid in seen.keys() & true if before.get(pid) == true[pid]} - {1}
            same = {
                pid
                for pid in still
                if not seen[pid].gaps and _seen(seen[pid], scheduler) == _true(true[pid])
            }
            wrong = {pid: (seen[pid], true[pid]) for pid in still - same - agreed}
            agreed |= same
            if agreed >= true.keys() - {1}:
                break
    assert not wrong
    assert agreed >= true.keys() - {1}
    assert len(agreed) > 80
    proof_count(len(agreed))


def test_every_way_a_frame_is_found_says_which(anyone: Guest, profiles: Path) -> None:
    with qvmi.attach_sync(anyone.qmp, cache=profiles) as machine:
        sleeper = next(row for row in machine.guest.processes() if row.name == "files")
        listing = machine.guest.stack(sleeper)
    behind = "orc" if anyone.config.machine == "q35" else "frame pointer"
    assert [row.how for row in listing] == ["saved", *[behind] * (len(listing) - 1)]
    assert {row.pid for row in listing} == {sleeper.pid}
    assert len({row.place for row in listing}) == len(listing) > 4


def test_what_has_ended_has_no_stack_and_that_is_no_gap(anyone: Guest, profiles: Path) -> None:
    with qvmi.attach_sync(anyone.qmp, cache=profiles) as machine:
        zombies = [row for row in machine.guest.processes() if row.state == "Z"]
        listings = [machine.guest.stack(row) for row in zombies]
    assert [(listing.items, listing.gaps) for listing in listings] == [((), ())] * len(listings)
    assert listings


def test_a_thread_has_a_stack_of_its_own(guest: Guest, profiles: Path) -> None:
    scheduler = _scheduler(guest)
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        leader = next(row for row in machine.guest.processes() if row.name == "threads")
        threads = [row for row in machine.guest.threads() if row.tgid == leader.pid]
        seen = {row.pid: _seen(machine.guest.stack(row), scheduler) for row in threads}
    assert len(seen) > 3
    for pid, stack in seen.items():
        text = guest.run(f"cat /proc/{leader.pid}/task/{pid}/stack").decode()
        assert stack == _true(text)


def test_a_task_that_is_gone_has_none(guest: Guest, profiles: Path) -> None:
    pid = int(guest.run(BUSY))
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        task = _named(machine, pid)
        guest.run(f"kill -9 {pid}")
        deadline = time.monotonic() + DEADLINE_S
        while guest.run(f"ls /proc/{pid}/stat 2>/dev/null"):
            assert time.monotonic() < deadline
        with pytest.raises(WalkFailed, match="is gone"):
            machine.guest.stack(task)


def _named(machine: qvmi.SyncMachine, pid: int) -> Process:
    return next(row for row in machine.guest.processes() if row.pid == pid)


def test_of_tasks_that_come_and_go_nothing_is_made_up(guest: Guest, profiles: Path) -> None:
    guest.start_storm()
    told = 0
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        for _ in range(3):
            for process in machine.guest.processes():
                try:
                    listing = machine.guest.stack(process)
                except WalkFailed:
                    continue  # it has ended
                # A stack that ends without a gap ends where stacks do.
                outer = [row.symbol for row in listing if row.reliable][-1:]
                assert listing.gaps or not outer or outer[0].startswith(OUTERMOST), listing
                told += len(listing)
    guest.stop_storm()
    assert told > 100


@pytest.mark.parametrize("guest", ["5.10", "6.1"], indirect=True)
def test_it_leads_through_modules(guest: Guest, profiles: Path) -> None:
    pid = int(guest.run(FUSE))
    deadline = time.monotonic() + DEADLINE_S
    while "[fuse]" not in (text := guest.run(f"cat /proc/{pid}/stack").decode()):
        assert time.monotonic() < deadline, text
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        seen = _seen(machine.guest.stack(_named(machine, pid)), _scheduler(guest))
    assert seen == _true(text)
    assert sum(line.endswith("[fuse]") for line in seen) >= 3


def test_of_a_task_that_runs_it_is_told_in_a_pause_and_through_interrupts(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    pid, entries = int(guest.run(BUSY)), _section(guest, "entry")
    counts = {"registers": 0, "user mode": 0, "interrupt frame": 0}
    deadline = time.monotonic() + DEADLINE_S
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        busy = _named(machine, pid)
        while not (counts["interrupt frame"] and counts["registers"] > 3):
            assert time.monotonic() < deadline, counts
            with machine.paused():
                listing = machine.guest.stack(busy)
            for how in _of_busy(listing, entries):
                counts[how] += 1
            guest.run("true")  # it goes on meanwhile
        live = machine.guest.stack(busy)
    assert all("pause the guest" in gap.reason for gap in live.gaps)
    guest.run(f"kill {pid}")
    proof_count(sum(counts.values()))


def _of_busy(listing: Listing[StackFrame], entries: Range) -> set[str]:
    """This is what was met on the way, which is checked against the ways that there are.

    A vCPU that has just come from user mode, or is about to go there, is on no stack of the task's.
    """
    if not listing.items:
        assert len(listing.gaps) == 1
        return set()
    names = [row.symbol for row in listing]
    hows = [row.how for row in listing]
    if listing.gaps:  # within a retpoline the return address is not where tables could tell
        assert "the kernel's tables do not tell" in listing.gaps[0].reason
        assert not any(row.reliable for row in listing.items if row.how == "scan")
        return set()
    assert all(row.reliable for row in listing)
    if hows[0] == "user mode":
        assert len(listing) == 1
        return {"user mode"}
    if "interrupt frame" in hows:
        at = hows.index("interrupt frame")
        assert names[at - 1].startswith("asm_")
    # It has been called by nobody: all that a program enters the kernel by is in one place.
    assert entries[0] <= listing.items[-1].address < entries[1], names
    return set(hows) - {"orc", "saved"}


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_without_unwind_tables_what_may_be_of_the_stack_is_told_as_such(
    guest: Guest, profiles: Path, tmp_path: Path
) -> None:
    path = tmp_path / "guest.json"
    qvmi_document("--qmp", guest.qmp, "isf", "-o", str(path))
    document = msgspec.json.decode(path.read_bytes())
    for name in ("__start_orc_unwind", "__start_orc_unwind_ip"):
        del document["symbols"][name]
    path.write_bytes(msgspec.json.encode(document))
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        sleeper = next(row for row in machine.guest.processes() if row.name == "files")
        exact = machine.guest.stack(sleeper)
    with qvmi.attach_sync(guest.qmp, isf=path) as machine:
        guessed = machine.guest.stack(sleeper)
    assert "no ORC tables" in guessed.gaps[0].reason
    assert [row.reliable for row in guessed] == [True] + [False] * (len(guessed) - 1)
    assert {row.how for row in guessed.items[1:]} == {"scan"}
    places = [(row.place, row.address) for row in guessed]
    assert [one for one in places if one in {(row.place, row.address) for row in exact}] == [
        (row.place, row.address) for row in exact
    ]


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_the_command_prints_it(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = ("--qmp", guest.qmp)
    pid = guest.truth().named("files").pid
    rows = qvmi_document(*machine, "stack", str(pid))["items"]
    assert _true(guest.run(f"cat /proc/{pid}/stack").decode()) == [
        f"{row['symbol']}+{row['offset']:#x}" for row in rows if "schedule" not in row["symbol"]
    ]
    table = run_qvmi(*machine, "stack", str(pid), "--exact")
    assert "the guest stood still" in table.stderr
    assert [line.split()[-1].partition("+")[0] for line in table.stdout.splitlines()[1:]] == [
        row["symbol"] for row in rows
    ]
    assert run_qvmi(*machine, "stack", str(pid), "--thread", "1").returncode == 4
