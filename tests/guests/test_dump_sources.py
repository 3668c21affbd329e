"""A dump of a real guest, in every form and by every hand, tells what the guest told of itself.

QEMU writes its own; LiME and AVML files are written here from what those programs' documents say and
from the ranges that the guest's /proc/iomem calls System RAM, as they do; a raw file is the RAM itself.
"""

import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cramjam
import pytest

import qvmi
from qvmi.addr import Pa
from qvmi.machine.memory_dump import MemoryDump
from qvmi.view import Taken
from tests.command_line import qvmi as qvmi_command
from tests.command_line import qvmi_document
from tests.guests.aarch64_guests import RAM_START
from tests.guests.agreement import shown_name, start_ticks
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab, Task, Truth
from tests.guests.pool import GuestPool
from tests.synthetic.dumps import range_header

MIB: Final = 1 << 20
AVML_BLOCK: Final = 16 * MIB
"""``MAX_BLOCK_SIZE``: a larger range is cut, and a block full of zeros left out."""
NOTE: Final = b"VMCOREINFO\0\0OSRELEASE="
IOMEM: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", re.MULTILINE)


@dataclass(frozen=True)
class Stopped:
    """A guest that stands still, with what it said before and after."""

    guest: Guest
    truth: Truth
    system_ram: tuple[tuple[int, int], ...]
    folder: Path

    @property
    def ram(self) -> Path:
        return self.guest.ram_paths[0]

    @property
    def ram_start(self) -> int:
        """The address of the first byte of that file."""
        return RAM_START if self.guest.config.machine == "virt" else 0

    def place(self, name: str) -> Path:
        return self.folder / name


def stopped(guest: Guest, folder: Path) -> Stopped:
    found = IOMEM.findall(guest.run("cat /proc/iomem").decode())
    ranges = tuple((int(first, 16), int(last, 16) + 1) for first, last in found)
    truth = guest.settled_truth()
    guest.monitor.execute("stop")
    return Stopped(guest, truth, ranges, folder)


@pytest.fixture(scope="module", params=KERNELS)
def still(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stopped]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stopped(guest, tmp_path_factory.mktemp("dumps"))


# ----------------------------------------------------------------------------------------- the writers


def by_qemu(still: Stopped, *, paging: bool = False, **more: object) -> Path:
    path = still.place("qemu.core")
    still.guest.monitor.execute("dump-guest-memory", paging=paging, protocol=f"file:{path}", **more)
    return path


def by_qemu_with_paging(still: Stopped) -> Path:
    return by_qemu(still, paging=True)


def by_qvmi(still: Stopped) -> Path:
    with qvmi.attach_sync(still.guest.qmp) as machine:
        machine.dump(still.place("qvmi.core"))
    return still.place("qvmi.core")


def as_raw_ram(still: Stopped) -> Path:
    return still.ram


def copy_of_ram(still: Stopped) -> Path:
    """This is a copy with the holes of the original."""
    path = still.place("ram.copy")
    subprocess.run(["cp", "--sparse=always", still.ram, path], check=True)
    return path


def without_the_first_mib(still: Stopped) -> Path:
    """Without what the kernel keeps there, VMCOREINFO has to lead to it."""
    path = copy_of_ram(still)
    with path.open("r+b") as file:
        file.write(bytes(MIB))
    return path


def without_any_note(still: Stopped) -> Path:
    """Without either, the page tables have to be found anywhere."""
    path = without_the_first_mib(still)
    data = path.read_bytes()
    with path.open("r+b") as file:
        for found in re.finditer(re.escape(NOTE), data):
            file.seek(found.start())
            file.write(b"x" * len(NOTE))
    return path


def as_lime(still: Stopped) -> Path:
    path = still.place("ram.lime")
    with path.open("wb") as file, still.ram.open("rb") as ram:
        for start, end in still.system_ram:
            file.write(range_header(start, end - start))
            for at in range(start, end, AVML_BLOCK):
                ram.seek(at - still.ram_start)
                file.write(ram.read(min(end, at + AVML_BLOCK) - at))
    return path


def as_avml(still: Stopped) -> Path:
    """The encoder is the one that AVML itself is built with."""
    path = still.place("ram.avml")
    with path.open("wb") as file, still.ram.open("rb") as ram:
        for start, end in blocks(still.system_ram):
            ram.seek(start - still.ram_start)
            data = ram.read(end - start)
            if data.count(0) == len(data):
                continue
            stream = bytes(cramjam.snappy.compress(data))
            file.write(range_header(start, len(data), compressed=True))
            file.write(stream + struct.pack("<Q", len(stream)))
    return path


def blocks(ranges: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        for at in range(start, end, AVML_BLOCK):
            yield at, min(end, at + AVML_BLOCK)


WRITERS: Final[tuple[Callable[[Stopped], Path], ...]] = (
    *(by_qemu, by_qemu_with_paging, by_qvmi, as_raw_ram, as_lime, as_avml),
    *(without_the_first_mib, without_any_note),
)
LED_BY: Final[dict[Callable[[Stopped], Path], str]] = {
    by_qvmi: "VMCOREINFO",
    as_raw_ram: "found by its form",
    without_the_first_mib: "VMCOREINFO",
    without_any_note: "found by its form",
}
"""What must lead to the page tables, where only one thing can or comes first."""
VIEWS: Final = (
    *((name,) for name in ("mounts", "files", "sockets", "cmdline", "log")),
    *((name, "1") for name in ("mounts", "files", "maps", "cmdline", "env", "stack")),
    *((name,) for name in ("creds", "namespaces", "cgroups")),
    ("scan", "--string", "/proc/sys/kernel", "--page-cache"),
    ("vol", "linux.pslist.PsList"),
    ("vol", "linux.lsof.Lsof", "--exact"),
)
"""What is asked of one dump in every way, and compared with the guest it was taken of."""


# ------------------------------------------------------------------------------------------ the claims


def facts_of(row: qvmi.Process | qvmi.Thread, truth: Truth) -> tuple[object, ...]:
    more = (row.ppid, row.uid, row.gid) if isinstance(row, qvmi.Process) else ()
    return (row.pid, row.tgid, *more, row.name, start_ticks(row, truth.clock_ticks))


def true_facts(task: Task, *, process: bool) -> tuple[object, ...]:
    name = shown_name(task.name[:15] if task.kernel_thread else task.name)
    more = (task.ppid, task.uid, task.gid) if process else ()
    return (task.pid, task.tgid, *more, name, task.start_ticks)


def assert_equals_truth(dump: MemoryDump, truth: Truth) -> int:
    """Kernel workers come and go until the guest stands still; all else is exactly as it was told."""
    count = 0
    for rows, tasks, process in (
        (dump.guest.processes(), truth.processes, True),
        (dump.guest.threads(), truth.tasks, False),
    ):
        assert not rows.gaps
        assert rows.provenance.taken is Taken.DUMP
        workers = {task.pid for task in truth.tasks if task.name.startswith(b"kworker/")}
        workers |= {row.pid for row in rows if row.name.startswith("kworker/")}
        seen = [facts_of(row, truth) for row in rows if row.pid not in workers]
        told = [true_facts(task, process=process) for task in tasks if task.pid not in workers]
        assert sorted(seen, key=repr) == sorted(told, key=repr)
        assert len(rows) >= len(tasks) - len(workers)
        count += len(seen)
    modules = dump.guest.modules()
    assert not modules.gaps
    assert [(row.name, row.size, row.address) for row in modules] == [
        (row.name, row.size, row.address) for row in truth.modules
    ]
    assert dump.guest.facts().release == truth.release
    return count + len(modules)


def places(dump: MemoryDump) -> Iterator[int]:
    """These are addresses in the kernel's image and all over the guest's tasks."""
    image = dump.guest.kernel.image
    yield from (image.pa, image.pa + MIB + 123, image.pa + image.end - image.start - 4096)
    for row in dump.guest.processes():
        yield dump.kernel_space.translate(row.address)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_dump_tells_what_the_guest_told(
    still: Stopped, write: Callable[[Stopped], Path], proof_count: Callable[[int], None]
) -> None:
    path = write(still)
    with qvmi.open_dump(path, use_cache=False) as dump:
        proof_count(assert_equals_truth(dump, still.truth))
        assert LED_BY.get(write, "") in dump.guest.facts().evidence[0].source
        with path.open("rb") if write is without_any_note else still.ram.open("rb") as ram:
            for at in places(dump):
                ram.seek(at - still.ram_start)
                assert dump.memory.read(Pa(at), 4096) == ram.read(4096)
    if path != still.ram:
        path.unlink()


# --------------------------------------------------------------------------------- other machines


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "pc", "cpus": 1, "cpu_flags": "la57=off", "append": "nokaslr", "ram": "memfd"},
        {"cpus": 4, "memory_mib": 3072, "append": "pti=on", "ram": "private"},
    ],
    ids=["pc-4level-nokaslr", "3GiB-pti"],
)
def test_a_dump_of_another_machine_tells_what_the_guest_told(
    guests: GuestPool,
    kernel: str,
    changes: dict[str, object],
    tmp_path: Path,
    proof_count: Callable[[int], None],
) -> None:
    config = GuestConfig(kernel, **changes)  # type: ignore[arg-type] # as the parameters above say
    still = stopped(guests.restore(config), tmp_path)
    with qvmi.open_dump(by_qvmi(still), use_cache=False) as dump:
        proof_count(assert_equals_truth(dump, still.truth))
        facts = dump.guest.facts()
    assert facts.page_table_isolation == ("pti=on" in config.append)
    assert (facts.kernel_slide == 0) == ("nokaslr" in config.append)
    if config.cpu_flags:
        assert facts.paging == "4-level"


@pytest.mark.parametrize(
    ("config", "below_mib"),
    [
        (GuestConfig("6.1", cpus=4, memory_mib=3072, append="pti=on"), 2048),
        (
            GuestConfig("6.12", "pc", memory_mib=5120, cpu_flags="la57=off", append="pti=on"),
            3072,
        ),
    ],
    ids=["q35", "pc"],
)
def test_raw_ram_is_split_where_its_machine_had_the_hole(
    guests: GuestPool,
    config: GuestConfig,
    below_mib: int,
    tmp_path: Path,
    proof_count: Callable[[int], None],
) -> None:
    still = stopped(guests.restore(config), tmp_path)
    with qvmi.open_dump(still.ram, use_cache=False) as dump:
        proof_count(assert_equals_truth(dump, still.truth))
        assert [ram.size // MIB for ram in dump.memory.ranges] == [
            below_mib,
            config.memory_mib - below_mib,
        ]
    with qvmi.open_dump(still.ram, use_cache=False, below_4g=below_mib * MIB) as dump:
        assert_equals_truth(dump, still.truth)


# ------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def kept(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig("6.12"))
        yield stopped(guest, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def core(kept: Stopped) -> tuple[Path, Truth]:
    return by_qvmi(kept), kept.truth


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "dump-cache"))


def test_every_listing_is_printed_of_a_dump(core: tuple[Path, Truth]) -> None:
    path, truth = core
    users = {task.pid for task in truth.processes if not task.kernel_thread}
    for command in ("ps", "tree"):
        document = qvmi_document("--dump", str(path), command)
        assert users <= {item["pid"] for item in document["items"]}
        assert document["provenance"]["taken"] == "dump"
        assert document["provenance"]["at"] == path.stat().st_mtime
    modules = qvmi_document("--dump", str(path), "modules", "--exact")
    assert [item["name"] for item in modules["items"]] == [one.name for one in truth.modules]
    threads = qvmi_document("--dump", str(path), "threads")
    assert {task.pid for task in truth.tasks if not task.kernel_thread} <= {
        item["pid"] for item in threads["items"]
    }


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_each_view_of_a_dump_is_that_of_the_guest_that_still_stands_there(
    kept: Stopped,
    core: tuple[Path, Truth],
    view: tuple[str, ...],
    proof_count: Callable[[int], None],
) -> None:
    path = core[0]
    live = qvmi_document("--qmp", kept.guest.qmp, *view)
    seen = qvmi_document("--dump", str(path), *view)
    assert seen["items"] == live["items"]
    assert (seen["gaps"], live["gaps"]) == ([], [])
    assert live["provenance"]["taken"] == ("captured" if "--exact" in view else "live")
    assert seen["provenance"]["taken"] == "dump"
    assert seen["provenance"]["at"] == path.stat().st_mtime
    assert seen["items"]
    proof_count(len(seen["items"]))


def test_a_script_asks_volatility_about_a_dump(core: tuple[Path, Truth]) -> None:
    path, truth = core
    with qvmi.open_dump(path, use_cache=False) as dump:
        table = dump.volatility("linux.pslist.PsList", pid=[1, 2])
    names = {task.pid: task.name.decode() for task in truth.processes if task.pid in {1, 2}}
    assert {row["PID"]: row["COMM"] for row in table} == names
    assert (table.provenance.taken, table.provenance.at) == (Taken.DUMP, path.stat().st_mtime)


def test_a_listing_on_one_moment_says_nothing_of_a_pause(core: tuple[Path, Truth]) -> None:
    done = qvmi_command("--dump", str(core[0]), "ps", "--exact")
    assert (done.returncode, done.stderr) == (0, "")
    assert "init" in done.stdout


def test_the_facts_of_a_dump_are_told(core: tuple[Path, Truth]) -> None:
    path, truth = core
    document = qvmi_document("--dump", str(path), "info")
    assert document["guest"]["release"] == truth.release
    assert document["dump"]["path"] == str(path)
    assert document["dump"]["size"] == path.stat().st_size
    done = qvmi_command("--dump", str(path), "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ELF core" in done.stdout
    assert truth.release in done.stdout


def test_memory_and_symbols_of_a_dump_are_read(core: tuple[Path, Truth], tmp_path: Path) -> None:
    path, truth = core
    banner = qvmi_document("--dump", str(path), "read", "linux_banner", "14")
    assert bytes.fromhex(banner["data"]) == b"Linux version "
    user = qvmi_document("--dump", str(path), "read", "--user", "1", "0x400000", "4")
    assert bytes.fromhex(user["data"]) == b"\x7fELF"
    symbol = qvmi_document("--dump", str(path), "symbol", "init_task")
    walked = qvmi_document("--dump", str(path), "translate", "init_task")
    assert walked["va"] == symbol["address"]
    isf = tmp_path / "guest.json.xz"
    qvmi_document("--dump", str(path), "isf", "-o", str(isf))
    listed = qvmi_document("--dump", str(path), "--isf", str(isf), "ps")
    assert {task.pid for task in truth.processes if not task.kernel_thread} <= {
        item["pid"] for item in listed["items"]
    }


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("regs",), "without registers"),
        (("watch",), "nothing happens in a dump"),
        (("dump", "copy"), "it is one; --pid takes a process from it"),
    ],
)
def test_what_a_dump_cannot_be_asked_is_told_with_the_reason(
    core: tuple[Path, Truth], tmp_path: Path, command: tuple[str, ...], why: str
) -> None:
    words = [str(tmp_path / word) if word == "copy" else word for word in command]
    done = qvmi_command("--dump", str(core[0]), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


def test_a_compressed_dump_of_qemu_is_refused_with_advice(kept: Stopped) -> None:
    path = by_qemu(kept, format="kdump-zlib")
    done = qvmi_command("--dump", str(path), "ps")
    assert (done.returncode, done.stdout) == (3, "")
    assert "kdump-compressed" in done.stderr
    assert "take it as ELF: `qvmi dump`" in done.stderr


def test_what_is_no_dump_ends_with_3_and_memory_without_a_kernel_with_4(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "noise").write_bytes(os.urandom(MIB))
    (tmp_path / "text").write_text("text")
    codes = {
        name: qvmi_command("--dump", str(tmp_path / name), "ps").returncode
        for name in ("pipe", "text", "nothing", "noise")
    }
    assert codes == {"pipe": 3, "text": 3, "nothing": 3, "noise": 4}
    done = qvmi_command("--dump", str(tmp_path / "noise"), "info")
    assert done.returncode == 4
    assert "not recognised" in done.stdout
