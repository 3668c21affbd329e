"""A core of a process holds what the process itself would read, and gdb opens it.

The oracles are the guest's own /proc/PID/mem, /proc/PID/syscall and /proc/PID/auxv, and gdb; the file is read
here by elf(5) alone.
"""

import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, iter_unpack, unpack_from
from typing import Final

import pytest

import qvmi
from qvmi.errors import GuestError
from qvmi.machine.new_file import NewFile
from qvmi.machine.process_dump import dump_process, write_process
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.process_memory import Held
from qvmi.view import Taken
from tests.asynchronous import asynchronous
from tests.command_line import qvmi as command
from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

PAGE: Final = 4096
GDB_S: Final = 120
LARGE: Final = 1 << 20
"""Of the stack of a thread most was never touched."""
CONFIGS: Final = [
    *(GuestConfig(kernel=kernel) for kernel in KERNELS),
    *(aarch64(kernel) for kernel in ("6.12-arm64", "7.x-arm64")),
]
PROCESSES: Final = ("threads", "hostile-args", "deleted-exe", "memfd-exe")
NOT_MEMORY: Final = ("[vvar", "[vdso]", "[vsyscall]")
PROGRAM: Final = Struct("<IIQQQQQQ")
NOTE: Final = Struct("<III")
PRSTATUS, AUXV, FILE = 1, 6, 0x46494C45
REGISTERS: Final = {62: (16, 19), 183: (32, 31)}
"""Where pc and sp are among the registers, by the ELF number of the architecture."""


@dataclass(frozen=True, slots=True)
class Core:
    """This is a core file, as far as it is looked at here.

    Attributes:
        loads: address, bytes in the file, bytes in memory and rights of each segment.
        notes: kind and content.
    """

    machine: int
    data: bytes
    loads: list[tuple[int, bytes, int, int]]
    notes: list[tuple[int, bytes]]

    @classmethod
    def of(cls, path: Path) -> "Core":
        data = path.read_bytes()
        (machine,) = unpack_from("<H", data, 18)
        (count,) = unpack_from("<H", data, 56)
        programs = [PROGRAM.unpack_from(data, 64 + n * PROGRAM.size) for n in range(count)]
        loads = [
            (va, data[offset : offset + size], room, flags)
            for kind, flags, offset, va, _, size, room, _ in programs
            if kind == 1
        ]
        (notes,) = (
            data[offset : offset + size]
            for kind, _, offset, _, _, size, _, _ in programs
            if kind == 4
        )
        return cls(machine, data, loads, list(notes_of(notes)))

    def note(self, kind: int) -> list[bytes]:
        """These are the contents of the notes of a kind."""
        return [data for its, data in self.notes if its == kind]

    def threads(self) -> dict[int, tuple[int, int]]:
        """These are pc and sp of each thread."""
        pc, sp = REGISTERS[self.machine]
        return {
            unpack_from("<I", data, 32)[0]: (
                unpack_from("<Q", data, 112 + 8 * pc)[0],
                unpack_from("<Q", data, 112 + 8 * sp)[0],
            )
            for data in self.note(PRSTATUS)
        }


def notes_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        name, size, kind = NOTE.unpack_from(data, at)
        at += NOTE.size + (name + 3 & -4)
        yield kind, data[at : at + size]
        at += size + 3 & -4


def named(name: str) -> Callable[[LinuxGuest], Process]:
    return lambda guest: next(row for row in guest.processes() if row.name == name)


def hashes(guest: Guest, pid: int, ranges: list[tuple[int, int]]) -> list[str]:
    """These are the SHA-256 of ranges of a process's memory, as the guest reads them."""
    found: list[str] = []
    for first in range(0, len(ranges), 16):
        part = " ".join(f"{va // PAGE} {size // PAGE}" for va, size in ranges[first : first + 16])
        script = (
            f"set -- {part}; while [ $# -gt 0 ]; do dd if=/proc/{pid}/mem bs={PAGE} skip=$1 count=$2"
            " 2>/dev/null | sha256sum; shift 2; done"
        )
        found += re.findall(r"^([0-9a-f]{64})", guest.run(script).decode(), re.MULTILINE)
    return found


def trimmed(va: int, data: bytes) -> tuple[int, bytes]:
    """This leaves out the zeros at the beginning of a large run, which a guest would read for seconds."""
    if len(data) <= LARGE:
        return va, data
    zeros = (len(data) - len(data.lstrip(b"\0"))) // PAGE * PAGE
    return va + zeros, data[zeros:]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def any_guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.mark.parametrize("name", PROCESSES)
@asynchronous
async def test_a_core_holds_what_the_process_would_read(
    any_guest: Guest, name: str, profiles: Path, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    path = tmp_path / "core"
    pid = any_guest.truth().named(name).pid
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        done = await dump_process(machine, named(name), path)
    assert (done.provenance.taken, done.gaps) == (Taken.CAPTURED, ())
    assert done.provenance.pause_s > 0
    assert any_guest.monitor.running()
    core = Core.of(path)
    whole = [(va, data) for va, data, _, _ in core.loads if data]
    compared = [trimmed(va, data) for va, data in whole]
    said = hashes(any_guest, pid, [(va, len(data)) for va, data in compared])
    assert said == [hashlib.sha256(data).hexdigest() for _, data in compared]
    starts = {va for va, *_ in core.loads}
    covered = Counter(va for start, data in whole for va in range(start, start + len(data), PAGE))
    for line in any_guest.proc("maps")[pid].splitlines():
        if any(word in line for word in NOT_MEMORY):
            continue
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        assert start in starts, line
        # All of these programs lies in files that are in memory alone: nothing of them is lacking.
        assert " r" not in line or all(covered[va] == 1 for va in range(start, end, PAGE)), line
    assert path.stat().st_size == done.size
    assert path.stat().st_blocks * 512 <= done.data_size + 64 * PAGE
    assert path.stat().st_mode & 0o777 == 0o600
    proof_count(sum(len(data) for _, data in compared) // PAGE)


@asynchronous
async def test_each_thread_has_the_registers_that_it_waits_with(
    any_guest: Guest, profiles: Path, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    path = tmp_path / "core"
    pid = any_guest.truth().named("threads").pid
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        await dump_process(machine, named("threads"), path)
    said = any_guest.run(
        f"cd /proc/{pid}/task; for t in *; do echo $t $(cat $t/syscall); done"
    ).decode()
    true = {}
    for line in said.splitlines():
        tid, *_, sp, pc = line.split()
        true[int(tid)] = (int(pc, 16), int(sp, 16))
    threads = Core.of(path).threads()
    assert len(true) > 4
    assert threads == true
    assert next(iter(threads)) == pid
    proof_count(len(threads))


@asynchronous
async def test_the_notes_tell_the_files_and_how_the_program_began(
    any_guest: Guest, profiles: Path, tmp_path: Path
) -> None:
    path = tmp_path / "core"
    pid = any_guest.truth().named("hostile-args").pid
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        await dump_process(machine, named("hostile-args"), path)
    core = Core.of(path)
    text = any_guest.run(f"cd /proc/{pid}; od -An -v -tx8 auxv").decode().split()
    auxv = [int(word, 16) for word in text]
    (noted,) = core.note(AUXV)
    assert [word for (word,) in iter_unpack("<Q", noted)] == auxv
    (files,) = core.note(FILE)
    count, page = unpack_from("<QQ", files)
    names = files[16 + 24 * count :].split(b"\0")[:-1]
    places = list(iter_unpack("<QQQ", files[16 : 16 + 24 * count]))
    lines = [line.split(maxsplit=5) for line in any_guest.proc("maps")[pid].splitlines()]
    assert page == PAGE
    assert [
        (start, end, offset * PAGE, name.decode())
        for (start, end, offset), name in zip(places, names, strict=True)
    ] == [
        (*(int(word, 16) for word in (*line[0].split("-"), line[2])), line[5])
        for line in lines
        if line[4] != "0"
    ]


@asynchronous
async def test_a_live_core_stops_nobody(any_guest: Guest, profiles: Path, tmp_path: Path) -> None:
    any_guest.monitor.events.clear()
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        done = await dump_process(machine, named("memfd-exe"), tmp_path / "core", live=True)
    assert (done.provenance.taken, done.provenance.pause_s) == (Taken.LIVE, 0.0)
    assert done.data_size > 100 * PAGE
    assert not [event["event"] for event in any_guest.monitor.events]


@asynchronous
async def test_pieces_of_memory_can_be_asked_for_and_read(any_guest: Guest, profiles: Path) -> None:
    name = "title"  # nobody else has touched its memory here
    pid = any_guest.truth().named(name).pid
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        guest = machine.guest
        process = named(name)(guest)
        pieces = guest.process_memory(process).items
        image = guest.process_image(process)
        found = [piece for piece in pieces if piece.held in {Held.MEMORY, Held.CACHE}]
        read = [image.read(piece, piece.start, piece.end - piece.start) for piece in found]
    assert {Held.MEMORY, Held.CACHE, Held.ZEROS} <= {piece.held for piece in pieces}
    said = hashes(any_guest, pid, [(piece.start, piece.end - piece.start) for piece in found])
    assert said == [hashlib.sha256(data).hexdigest() for data in read]


def gdb(core: Path, *commands: str) -> str:
    given = [word for one in commands for word in ("-ex", one)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-core", str(core), *given],
        capture_output=True,
        text=True,
        timeout=GDB_S,
        check=True,
    )
    return done.stdout


def test_gdb_opens_it_and_prints_strings_and_threads(guest: Guest, tmp_path: Path) -> None:
    path, truth = tmp_path / "core", guest.truth()
    pid = truth.named("hostile-args").pid
    done = command("--qmp", guest.qmp, "dump", "--pid", str(pid), str(path))
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "the guest stood still for" in done.stderr
    first = guest.proc("environ")[pid].split("\0")[0]
    start = int(guest.run(f"sed 's/.*) //' /proc/{pid}/stat").split()[47])
    printed = gdb(path, f"x/s {start}", "info files", "info threads", "p/x $pc")
    assert f'"{first}"' in printed
    assert "is load" in printed
    assert f"LWP {pid}" in printed
    pc = guest.run(f"cat /proc/{pid}/syscall").split()[-1].decode()
    assert f"$1 = {pc}" in printed


@pytest.mark.parametrize("guest", ["6.12"], indirect=True)
def test_the_command_dumps_a_process_out_of_a_dump(guest: Guest, tmp_path: Path) -> None:
    whole, near, far = (tmp_path / name for name in ("whole", "near", "far"))
    with qvmi.attach_sync(guest.qmp) as machine:
        machine.dump(whole)
    ways = ((("--qmp", guest.qmp), near), (("--dump", str(whole)), far))
    sizes = []
    for options, path in ways:
        done = command(*options, "--json", "dump", "--pid", "1", str(path))
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        sizes.append([document[name] for name in ("size", "data_size", "absent_size")])
    assert sizes[0] == sizes[1]
    assert Core.of(near).notes[1:] == Core.of(far).notes[1:]
    refused = command("--dump", str(whole), "dump", str(far))
    assert refused.returncode == 2
    assert "--pid" in refused.stderr


@pytest.mark.parametrize("guest", ["6.12"], indirect=True)
@pytest.mark.parametrize(
    ("pid", "words"),
    [(2, "2 is a kernel thread: it has no memory of its own"), (999999, "has the pid 999999")],
    ids=["kernel thread", "nobody"],
)
def test_what_has_no_memory_is_refused_and_nothing_is_written(
    guest: Guest, tmp_path: Path, pid: int, words: str
) -> None:
    path = tmp_path / "core"
    done = command("--qmp", guest.qmp, "dump", "--pid", str(pid), str(path))
    assert (done.returncode, done.stdout) == (4, "")
    assert words in done.stderr
    assert not list(tmp_path.iterdir())
    assert guest.monitor.running()


@pytest.mark.parametrize("guest", ["6.12"], indirect=True)
@asynchronous
async def test_a_process_that_ends_meanwhile_is_no_core(
    guest: Guest, profiles: Path, tmp_path: Path
) -> None:
    pid = guest.start_churn()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        process = next(row for row in machine.guest.processes() if row.pid == pid)
        guest.stop_churn()
        with NewFile(tmp_path / "core") as file, pytest.raises(GuestError):
            write_process(machine.guest, process, file)
