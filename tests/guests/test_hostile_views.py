"""A kernel that lies in what its processes have: what is true beside the lie is listed, with a gap."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pytest

import qvmi
from qvmi import Listing, Pa, Process, Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address, field_offset
from tests.guests.lab import KERNELS, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
NOWHERE: Final = 0x4141414141414141
FOLDER: Final = "/run/deleted-folder"
"""Open in the process ``files``, as is a file in it (tests/guests/lab/init/population.c)."""

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Den:
    """This is a guest that stands still, what was understood of it, and its memory to write to."""

    linux: LinuxGuest
    ram: GuestRam

    def process(self, name: str) -> Process:
        return next(row for row in self.linux.processes() if row.name == name)

    def offset(self, type_name: str, *names: str) -> int:
        return field_offset(self.linux.kernel.symbols, type_name, *names)

    def pa(self, va: int) -> Pa:
        return self.linux.kernel.space.translate(Va(va))

    def word(self, va: int) -> int:
        return int.from_bytes(self.linux.kernel.space.read(Va(va), 8), "little")

    def dentry_of(self, name: str) -> int:
        """This is the dentry of an open file."""
        file = next(row for row in self.linux.open_files() if row.path == name)
        path = self.offset("file", "f_path") + self.offset("path", "dentry")
        return self.word(file.address + path)


@pytest.fixture(scope="module", params=KERNELS)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(request.param), paused=True)
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))


def _look(question: Callable[[], Listing[Row]]) -> Listing[Row]:
    with cpu_seconds(FEW_SECONDS):
        return question()


def test_a_folder_below_itself_is_a_gap_of_what_is_in_it(den: Den) -> None:
    before = _look(den.linux.open_files)
    file, folder = (den.dentry_of(FOLDER + name) for name in ("/file", ""))
    place = den.pa(folder + den.offset("dentry", "d_parent"))
    with den.ram.altered(place, struct.pack("<Q", file)):
        listing = _look(den.linux.open_files)
    missing = set(before) - set(listing)
    assert {row.path for row in missing} == {FOLDER, FOLDER + "/file"}
    assert {gap.address for gap in listing.gaps} == {row.address for row in missing}


@pytest.mark.parametrize("where", [0, NOWHERE, 0xFFFFFFFFFFFFFFFF])
def test_a_dentry_that_is_nowhere_is_a_gap_and_hides_no_other_file(den: Den, where: int) -> None:
    before = _look(den.linux.open_files)
    victim = next(row for row in before if row.path.startswith("/run/name with"))
    place = victim.address + den.offset("file", "f_path") + den.offset("path", "dentry")
    with den.ram.altered(den.pa(place), struct.pack("<Q", where)):
        listing = _look(den.linux.open_files)
    assert {gap.address for gap in listing.gaps} == {victim.address}
    assert set(before) - set(listing) == {row for row in before if row.address == victim.address}


def test_a_table_of_descriptors_larger_than_any_is_a_gap_of_its_process(den: Den) -> None:
    before = _look(den.linux.open_files)
    owner = den.process("files")
    files = den.word(owner.address + den.offset("task_struct", "files"))
    table = den.word(files + den.offset("files_struct", "fdt"))
    with den.ram.altered(den.pa(table), struct.pack("<I", 0x7FFFFFFF)):
        listing = _look(den.linux.open_files)
    assert [gap.address for gap in listing.gaps] == [owner.address]
    assert set(before) - set(listing) == {row for row in before if row.pid == owner.pid}


def test_a_mount_that_leads_nowhere_is_a_gap_and_hides_no_other(den: Den) -> None:
    before = _look(den.linux.mounts)
    victim = next(row for row in before if row.path == "/run/m/alone")
    place = victim.address + den.offset("mount", "mnt_mountpoint")
    with den.ram.altered(den.pa(place), struct.pack("<Q", NOWHERE)):
        listing = _look(den.linux.mounts)
    assert victim.address in {gap.address for gap in listing.gaps}
    assert set(before) - set(listing) == {victim}


@pytest.mark.parametrize("lie", ["init_task", "empty_zero_page"])
def test_a_root_that_lies_in_no_mount_is_a_gap_and_no_empty_answer(den: Den, lie: str) -> None:
    owner = den.process("chrooted")
    fs = den.word(owner.address + den.offset("task_struct", "fs"))
    place = fs + den.offset("fs_struct", "root") + den.offset("path", "mnt")
    there = address(den.linux.kernel.symbols, lie) + den.offset("mount", "mnt")
    before = _look(lambda: den.linux.mounts(owner))
    assert before.items
    with den.ram.altered(den.pa(place), struct.pack("<Q", there)):
        listing = _look(lambda: den.linux.mounts(owner))
    assert not listing.items
    assert [gap.structure for gap in listing.gaps] == ["fs_struct.root"]


@pytest.mark.parametrize("member", ["vm_mm", "vm_end", "vm_file"])
def test_a_mapping_that_lies_is_a_gap_and_hides_no_other(den: Den, member: str) -> None:
    owner = den.process("mappings")
    before = _look(lambda: den.linux.mappings(owner))
    victim = next(row for row in before if row.name.startswith("/run/mapped "))
    place = victim.address + den.offset("vm_area_struct", member)
    with den.ram.altered(den.pa(place), struct.pack("<Q", NOWHERE)):
        listing = _look(lambda: den.linux.mappings(owner))
        every = _look(den.linux.mappings)
    assert victim.address in {gap.address for gap in listing.gaps}
    assert set(before) - set(listing) == {victim}
    assert victim.address in {gap.address for gap in every.gaps}
    assert set(listing) <= set(every)


def test_a_map_without_a_beginning_is_a_gap(den: Den) -> None:
    owner = den.process("mappings")
    mm = den.word(owner.address + den.offset("task_struct", "mm"))
    symbols = den.linux.kernel.symbols
    tree = symbols.find_field("mm_struct", ("mm_mt",))
    place = mm + (
        den.offset("mm_struct", "mmap")
        if tree is None
        else tree.offset + den.offset("maple_tree", "ma_root")
    )
    others = {row for row in _look(den.linux.mappings) if row.pid != owner.pid}
    with den.ram.altered(den.pa(place), struct.pack("<Q", NOWHERE << 8 & (1 << 64) - 1 | 0x0E)):
        listing = _look(lambda: den.linux.mappings(owner))
        every = _look(den.linux.mappings)
    assert listing.gaps
    assert every.gaps
    assert others <= set(every)


def test_a_page_of_the_stack_that_is_gone_is_a_gap_of_that_process(den: Den) -> None:
    before = _look(den.linux.command_lines)
    owner = den.process("hostile-args")
    mm = den.word(owner.address + den.offset("task_struct", "mm"))
    start = den.word(mm + den.offset("mm_struct", "arg_start"))
    entry = den.linux.user_space(owner).walk(Va(start)).steps[-1].address
    with den.ram.altered(entry, bytes(8)):
        listing = _look(den.linux.command_lines)
    assert {gap.address for gap in listing.gaps} == {start}
    changed = {row.pid for row in set(before) ^ set(listing)}
    assert changed == {owner.pid}


def test_a_record_of_the_log_that_lies_is_a_gap_and_hides_no_other(den: Den) -> None:
    before = _look(den.linux.log)
    ring = den.word(address(den.linux.kernel.symbols, "prb"))
    ring += den.offset("printk_ringbuffer", "desc_ring")
    descriptors = den.word(ring + den.offset("prb_desc_ring", "descs"))
    count_bits = den.word(ring + den.offset("prb_desc_ring", "count_bits")) & 0xFF
    # The very newest record may still wait for its line's end.
    late = den.word(ring + den.offset("prb_desc_ring", "head_id")) - 3 & ((1 << count_bits) - 1)
    size = den.linux.kernel.symbols.size_of("prb_desc")
    assert size
    place = descriptors + late * size + den.offset("prb_desc", "text_blk_lpos")
    with den.ram.altered(den.pa(place), struct.pack("<QQ", 4, 20)):
        listing = _look(den.linux.log)
    assert len(listing.gaps) == 1
    assert set(before) - set(listing) <= set(before.items[-4:])
    assert len(before) - len(listing) == 1


SOCKET_LIES: Final[dict[str, Callable[[Den, int], int]]] = {
    "sock": lambda den, socket: socket + den.offset("socket", "sk"),
    "file": lambda den, socket: socket + den.offset("socket", "file"),
    "namespace": lambda den, socket: (
        den.word(socket + den.offset("socket", "sk")) + den.offset("sock_common", "skc_net")
    ),
}


@pytest.mark.parametrize("lie", SOCKET_LIES.values(), ids=SOCKET_LIES)
def test_a_socket_that_lies_is_a_gap_and_hides_no_other(
    den: Den, lie: Callable[[Den, int], int]
) -> None:
    before = _look(den.linux.sockets)
    victim = next(row for row in before if row.local == "0.0.0.0:5001")
    rows = den.linux.open_files(den.process("sockets"))
    file = next(row for row in rows if row.fd == victim.fd)
    socket = den.word(file.address + den.offset("file", "private_data"))
    with den.ram.altered(den.pa(lie(den, socket)), struct.pack("<Q", NOWHERE)):
        listing = _look(den.linux.sockets)
    # The kernel's table of sockets leads to it too.
    in_table = victim.address + den.offset("sock_common", "skc_node")
    assert listing.gaps[0].address == file.address
    assert {gap.address for gap in listing.gaps[1:]} <= {in_table}
    assert set(before) - set(listing) == {victim}
