"""What is special about an aarch64 guest: its two roots, its registers, and how its kernel is found.

The oracles are the guest's own note for crash dumps and /proc, and gdb-multiarch on QEMU's gdbstub.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from mmap import PROT_READ, mmap
from pathlib import Path

import pytest

import qvmi
from qvmi import Taken, UnknownGuest, Va
from qvmi.arch import aarch64 as arch
from qvmi.errors import TranslationFault
from qvmi.semantics.linux.image.kallsyms import tables_by_form, tables_by_vmcoreinfo
from tests.asynchronous import asynchronous
from tests.guests.aarch64_guests import EVERY, NARROW, NOTE, RAM_START, aarch64, noted
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

GDB_S = 60
FIRST_KERNEL_ADDRESS = {48: 0xFFFF_0000_0000_0000, 52: 0xFFF0_0000_0000_0000}  # memory.rst
ATTACHES = 10


@pytest.fixture(scope="module", params=EVERY, ids=lambda config: config.name)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def bits_of(guest: Guest) -> int:
    return 48 if guest.config.cpu_flags == NARROW else 52


@pytest.fixture(scope="module")
def still(lab: Lab) -> Iterator[Guest]:
    """This is a guest that stands still, with a gdbstub that nobody holds."""
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(aarch64(gdbstub=True))
        guest.monitor.execute("stop")
        yield guest


def _asked_of_gdb(guest: Guest, *commands: str) -> list[str]:
    gdb = shutil.which("gdb-multiarch")
    if gdb is None:
        pytest.skip("gdb-multiarch is not on this machine: apt-get install gdb-multiarch")
    # Detaching, as gdb does at its end, would let the guest run.
    words = [word for command in (*commands, "disconnect") for word in ("-ex", command)]
    done = subprocess.run(
        [gdb, "-nx", "-batch", "-ex", f"target remote {guest.gdb_socket}", *words],
        capture_output=True,
        text=True,
        timeout=GDB_S,
        check=True,
    )
    assert not guest.monitor.running()
    return done.stdout.splitlines()


def _value(lines: list[str], name: str) -> list[int]:
    """These are gdb's answers to ``info registers NAME``, one for each vCPU that was asked for."""
    found = (re.fullmatch(rf"{name}\s+(0x[0-9a-f]+)\s.*", line) for line in lines)
    return [int(match[1], 16) for match in found if match]


# ---------------------------------------------------------------------------- how the kernel is found


@asynchronous
async def test_every_finding_has_evidence_and_is_the_guests_own(guest: Guest) -> None:
    truth, note = guest.kallsyms(), noted(guest)
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        facts = machine.guest.facts()
        start = machine.memory.ranges[0].start
    root = truth.addresses["swapper_pg_dir"] - note["NUMBER(kimage_voffset)"]
    assert (facts.architecture, facts.page_table_root) == ("aarch64", root)
    assert facts.paging.startswith(f"{bits_of(guest)}-bit")
    assert (facts.kernel_base, facts.kernel_slide) == (
        truth.addresses["_text"],
        note["KERNELOFFSET"],
    )
    assert not facts.page_table_isolation
    assert facts.uptime_s is not None
    because = {item.source.partition(" at ")[0]: item.claim for item in facts.evidence}
    assert f"image at {truth.addresses['_text']:#x}" in because["page tables"]
    assert because["kallsyms, found by: tables_by_form"] == f"{truth.count} symbols"
    assert guest.run("cat /proc/version").decode().strip() == because["linux_banner"]
    assert f"{root:#x}" in because["swapper_pg_dir"]
    assert start == RAM_START
    assert f"{FIRST_KERNEL_ADDRESS[bits_of(guest)]:#x}" in because["memstart_addr and page tables"]


@asynchronous
async def test_search_finds_the_tables_vmcoreinfo_names(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        image = machine.guest.kernel.image
        assert tables_by_form(machine.memory, image) == tables_by_vmcoreinfo(machine.memory, image)


@asynchronous
async def test_looking_never_stops_the_guest(guest: Guest) -> None:
    guest.monitor.execute("query-status")
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        linux = machine.guest
        for look in (linux.facts, linux.processes, linux.threads, linux.modules):
            look()
        await machine.registers()
        await machine.refresh()
    assert guest.monitor.running()
    assert not [event["event"] for event in guest.monitor.events]


@asynchronous
async def test_a_guest_in_user_mode_or_in_a_storm_is_understood_every_time(guest: Guest) -> None:
    for start, stop in (
        (guest.start_spinning, guest.stop_spinning),
        (guest.start_storm, guest.stop_storm),
    ):
        start()
        try:
            for _ in range(ATTACHES):
                async with qvmi.attach(guest.qmp, use_cache=False) as machine:
                    listing = machine.guest.processes()
                    assert len(listing)
                    assert not listing.gaps
        finally:
            stop()


@asynchronous
async def test_kpti_is_seen_and_user_mode_hides_nothing(guests: GuestPool) -> None:
    """A processor that has not what makes it needless; user mode runs on tables without the kernel."""
    guest = guests.restore(GuestConfig("6.12-arm64", "virt", extra=("-cpu", "cortex-a57")))
    assert b"Kernel page table isolation (KPTI)" in guest.run("dmesg")
    guest.start_spinning()
    for _ in range(ATTACHES):
        async with qvmi.attach(guest.qmp, use_cache=False) as machine:
            facts = machine.guest.facts()
            assert (facts.page_table_isolation, facts.paging) == (True, "48-bit, 4 levels")
            assert not machine.guest.processes().gaps


@asynchronous
async def test_without_a_note_only_the_gdbstub_that_was_named_is_asked(guests: GuestPool) -> None:
    guest = guests.restore(aarch64(gdbstub=True))
    processes = {(task.pid, task.ppid) for task in guest.settled_truth().processes}
    _write(guest, _place_of_note(guest), b"FORGOTTEN!")
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        with pytest.raises(UnknownGuest, match="gdbstub") as caught:
            _ = machine.guest
    assert "no kernel is described" in str(caught.value.evidence)
    async with qvmi.attach(guest.qmp, use_cache=False, gdb=str(guest.gdb_socket)) as machine:
        listing = machine.guest.processes()
        evidence = {item.source for item in machine.guest.facts().evidence}
    assert {(row.pid, row.ppid) for row in listing} >= processes
    assert any("TTBR1_EL1" in source for source in evidence)
    assert "VBAR_EL1" in evidence
    assert listing.provenance.pause_s > 0.0  # what it took to ask is told
    assert guest.monitor.running()


@pytest.mark.parametrize("source", ["QEMU's process memory", "pmemsave", "gdbstub"])
@asynchronous
async def test_is_understood_over_memory_that_has_to_be_asked_for(
    guests: GuestPool, source: str
) -> None:
    guest = guests.restore(aarch64(gdbstub=True))
    processes = {(task.pid, task.ppid) for task in guest.settled_truth().processes}
    gdb = str(guest.gdb_socket) if source == "gdbstub" else None
    async with qvmi.attach(guest.qmp, use_cache=False, sources=[source], gdb=gdb) as machine:
        listing = await machine.query(lambda linux: linux.processes())
        assert (machine.stood_still_s > 0.0) == (source == "gdbstub")
    assert {(row.pid, row.ppid) for row in listing} >= processes
    assert guest.monitor.running()


@asynchronous
async def test_a_forged_note_is_not_believed(guests: GuestPool) -> None:
    """A program in the guest may write whatever note it likes, with the true one behind it."""
    guest = guests.restore(aarch64())
    true = noted(guest)
    text = "\n".join([
        "OSRELEASE=6.6.6",
        "PAGESIZE=4096",
        f"SYMBOL(swapper_pg_dir)={true['SYMBOL(_stext)']:x}",
        f"SYMBOL(_stext)={true['SYMBOL(_stext)']:x}",
        f"NUMBER(kimage_voffset)={true['NUMBER(kimage_voffset)']:#x}",
        "NUMBER(TCR_EL1_T1SZ)=0xc",
    ])  # fmt: skip
    header = (11).to_bytes(4, "little") + len(text).to_bytes(4, "little") + bytes(4)
    forged = header + b"VMCOREINFO\0\0" + text.encode()
    _write(guest, RAM_START + 0x1000, forged)  # nothing is loaded there, and it is searched first
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        facts = machine.guest.facts()
    assert facts.release == guest.truth().release
    assert facts.kernel_base == guest.kallsyms().addresses["_text"]


def _place_of_note(guest: Guest) -> int:
    with guest.ram_paths[0].open("rb") as ram, mmap(ram.fileno(), 0, prot=PROT_READ) as memory:
        return RAM_START + memory.find(NOTE)


def _write(guest: Guest, pa: int, data: bytes) -> None:
    """This changes a guest's memory from outside, between two of its instructions."""
    guest.monitor.execute("stop")
    with guest.ram_paths[0].open("r+b") as ram:
        ram.seek(pa - RAM_START)
        ram.write(data)
    guest.monitor.execute("cont")


# ----------------------------------------------------------------------------------------- addresses


@asynchronous
async def test_translates_the_image_as_the_kernel_does(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    to_va = noted(guest)["NUMBER(kimage_voffset)"]
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        space = machine.kernel_space
        for name, at in guest.kallsyms().addresses.items():
            if name == "_end":  # it lies behind the last page
                continue
            walked = space.walk(Va(at))
            assert walked.pa == space.translate(Va(at)) == at - to_va, name
            top = "level 0 descriptor" if bits_of(guest) == 48 else "level -1 descriptor"
            assert walked.steps[0].level == top
            assert walked.page_size in {4096, 2 << 20}
    proof_count(len(guest.kallsyms().addresses))


@asynchronous
async def test_reads_what_gdb_reads_by_the_vcpus_own_page_tables(
    still: Guest, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(still.qmp, use_cache=False) as machine:
        linux, space = machine.guest, machine.kernel_space
        places = [row.address for row in list(linux.processes())[::10]]  # the linear map
        places += [row.address for row in linux.modules()]  # pages of their own
        places += [row.struct_address for row in linux.modules()]
        places += [linux.kernel.image.start, linux.kernel.banner_address]
        seen = [space.read(place, 16) for place in places]
    lines = _asked_of_gdb(still, *[f"x/16xb {place:#x}" for place in places])
    told = re.findall(r"^(0x[0-9a-f]+).*?:\t(.*)$", "\n".join(lines), re.MULTILINE)
    rows = [bytes(int(byte, 16) for byte in row.split()) for _, row in told]
    pairs = [first + second for first, second in zip(rows[::2], rows[1::2], strict=True)]
    assert pairs == seen
    proof_count(len(seen))


@asynchronous
async def test_each_half_has_a_root_of_its_own(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        process = next(row for row in machine.guest.processes() if row.name == "init")
        user = machine.user_space(process)
        maps = guest.run("cat /proc/1/maps").decode().splitlines()
        first = int(maps[0].partition("-")[0], 16)
        assert user.read(Va(first), 4) == b"\x7fELF"
        assert "r-x" in maps[0].split()[1] or user.walk(Va(first)).permissions.user
        with pytest.raises(TranslationFault, match="not in the upper half"):
            machine.kernel_space.walk(Va(first))
        with pytest.raises(TranslationFault, match="not in the lower half"):
            user.walk(process.address)


@asynchronous
async def test_the_rights_of_a_program_are_those_of_proc_maps(guest: Guest, profiles: Path) -> None:
    maps = guest.run("cat /proc/1/maps").decode().splitlines()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        process = next(row for row in machine.guest.processes() if row.name == "init")
        user = machine.user_space(process)
        seen = 0
        for line in maps:
            bounds, rights, *_ = line.split()
            try:
                allowed = user.walk(Va(int(bounds.partition("-")[0], 16))).permissions
            except TranslationFault:
                continue  # nobody has touched it yet
            seen += 1
            assert allowed.user
            assert allowed.executable == ("x" in rights), line
            assert not allowed.writable or "w" in rights, line
    assert seen >= 3


# ----------------------------------------------------------------------------------------- registers


@asynchronous
async def test_every_vcpu_has_the_registers_that_gdb_tells(still: Guest) -> None:
    names = [*(f"x{n}" for n in range(31)), "sp", "pc", "cpsr"]
    system = ["TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "SP_EL0", "TPIDR_EL1", "MAIR_EL1", "ELR_EL1"]
    asked = [f"info registers {name}" for name in (*names, *system)]
    lines = _asked_of_gdb(still, "thread 1", *asked, "thread 2", *asked)
    async with qvmi.attach(still.qmp, discover=False) as machine:
        by_monitor = await machine.registers()
        view = await machine.system_registers()
    assert (view.provenance.taken, view.provenance.pause_s) == (Taken.CAPTURED, 0.0)
    for number in range(2):
        plain, full = by_monitor[number], view.vcpus[number]
        assert isinstance(plain, arch.Registers)
        assert isinstance(full, arch.Registers)
        for vcpu in (plain, full):
            mine = (*vcpu.x, vcpu.sp, vcpu.pc, vcpu.cpsr)
            assert list(mine) == [_value(lines, name)[number] for name in names]
        assert [getattr(full, name.lower()) for name in system] == [
            _value(lines, name)[number] for name in system
        ]
        assert plain.ttbr1_el1 is None
    assert not still.monitor.running()


@asynchronous
async def test_the_system_registers_lead_to_the_kernel_and_its_current_tasks(
    guest: Guest, profiles: Path
) -> None:
    guest.start_spinning()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        view = await machine.system_registers()
        own = machine.guest.kernel.image
        known = {row.address for row in machine.guest.threads()}
        idle = {f"swapper/{number}" for number in range(2)}
        for vcpu in view.vcpus:
            assert isinstance(vcpu, arch.Registers)
            assert vcpu.upper_tables == (own.root, own.geometry)
            thread = machine.guest.current_thread(vcpu)
            assert vcpu.sp_el0 is not None
            assert (thread is not None) == bool(vcpu.exception_level and vcpu.sp_el0 >> 63)
            assert thread is None or thread.address in known or thread.name in idle
    guest.stop_spinning()
    assert view.provenance.pause_s > 0.0
    assert guest.monitor.running()


@asynchronous
async def test_a_breakpoint_tells_who_came_there(guests: GuestPool) -> None:
    guest = guests.restore(aarch64())
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        guest.ask("storm start 2")
        names = set()
        async with machine.breakpoints("kernel_clone") as hits:
            async for hit in hits:
                assert hit.task is not None
                names.add(hit.task.name)
                assert machine.kernel_space.translate(
                    Va(hit.arguments[0])
                )  # struct kernel_clone_args
                if hits.hits >= 5:
                    break
        storm = guest.stop_storm()
    assert all(name.startswith("storm") for name in names)
    assert storm is not None
    assert guest.monitor.running()
