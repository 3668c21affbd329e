"""A kernel that lies about its page cache and its memory: no lie is taken for content, or hides the rest."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Pa, Va
from qvmi.semantics.guest_os import CachedFile
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.cached_files import MissingRange
from qvmi.semantics.rows.process_memory import Held
from qvmi.symbols.layout import address, field_offset
from tests.guests.lab import KERNELS, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
NOWHERE: Final = 0x4141414141414141
PAGE: Final = 4096
FILE: Final = "/init"
"""It has some 200 pages, so that the array of them has several nodes."""
LEAVES: Final = 64
"""Pages that one node of such an array stands for."""


@dataclass(frozen=True, slots=True)
class Den:
    """This is a guest that stands still, what was understood of it, and its memory to write to."""

    linux: LinuxGuest
    ram: GuestRam

    def files(self) -> dict[str, CachedFile]:
        with cpu_seconds(FEW_SECONDS):
            return {file.path: file for file in self.linux.cached_files()}

    def offset(self, type_name: str, *names: str) -> int:
        return field_offset(self.linux.kernel.symbols, type_name, *names)

    def word(self, va: int) -> int:
        return int.from_bytes(self.linux.kernel.space.read(Va(va), 8), "little")

    def pa(self, va: int) -> Pa:
        return self.linux.kernel.space.translate(Va(va))

    def head(self, file: CachedFile) -> int:
        """This is where the pointer to the first node of a file's pages lies."""
        mapping = self.offset("inode", "i_data") + self.offset("address_space", "i_pages")
        return file.address + mapping + self.offset("xarray", "xa_head")

    def slot(self, file: CachedFile, number: int, *, level: int = 0) -> int:
        """This is where a slot of the first node lies, or of the first one below it."""
        at = self.head(file)
        for _ in range(level + 1):
            at = self.word(at) - 2 + self.offset("xa_node", "slots")
        return at + 8 * number

    def content(self, file: CachedFile) -> tuple[bytes, tuple[MissingRange, ...]]:
        found = bytearray(file.size)

        def write(offset: int, data: bytes) -> None:
            found[offset : offset + len(data)] = data

        with cpu_seconds(FEW_SECONDS):
            listing = self.linux.recover(file, write)
        assert len(found) == file.size
        return bytes(found), listing.items


@pytest.fixture(scope="module", params=KERNELS)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(request.param), paused=True)
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))


@pytest.mark.parametrize("lie", ["itself", "nowhere", "end"])
def test_a_node_that_leads_elsewhere_is_a_missing_part(den: Den, lie: str) -> None:
    file = den.files()[FILE]
    true, none = den.content(file)
    assert not none
    to = {
        "itself": den.word(den.head(file)),
        "nowhere": NOWHERE << 8 & (1 << 64) - 1 | 2,
        "end": -2,
    }
    entry = struct.pack("<Q", to[lie] & (1 << 64) - 1)
    with den.ram.altered(den.pa(den.slot(file, 1)), entry):
        found, missing = den.content(file)
        assert den.files().keys() >= {FILE, "/bin/busybox"}
    (part,) = missing
    assert (part.start, part.end) == (LEAVES * PAGE, file.size)
    assert part.reason
    assert found[: part.start] == true[: part.start]
    assert not any(found[part.start :])


@pytest.mark.parametrize("to", [0x4141414141414140, 1 << 63, (1 << 64) - 4])
def test_a_page_that_is_none_is_missing_and_the_others_are_there(den: Den, to: int) -> None:
    file = den.files()[FILE]
    true, _ = den.content(file)
    with den.ram.altered(den.pa(den.slot(file, 5, level=1)), struct.pack("<Q", to)):
        found, (part,) = den.content(file)
    assert (part.start, part.end) == (5 * PAGE, 6 * PAGE)
    assert found == true[: part.start] + bytes(PAGE) + true[part.end :]


def test_a_page_of_another_file_is_not_taken(den: Den) -> None:
    files = den.files()
    file, other = files[FILE], files["/bin/busybox"]
    true, _ = den.content(file)
    foreign = struct.pack("<Q", den.word(den.slot(other, 5, level=1)))
    with den.ram.altered(den.pa(den.slot(file, 5, level=1)), foreign):
        found, (part,) = den.content(file)
    assert (part.start, part.end) == (5 * PAGE, 6 * PAGE)
    assert "no page of this file" in part.reason
    assert found[6 * PAGE :] == true[6 * PAGE :]


def test_a_size_beyond_all_files_costs_nothing(den: Den) -> None:
    file = den.files()[FILE]
    place = den.pa(file.address + den.offset("inode", "i_size"))
    wrote = []
    with den.ram.altered(place, struct.pack("<Q", 1 << 62)), cpu_seconds(FEW_SECONDS):
        listing = den.linux.recover(file, lambda offset, data: wrote.append((offset, len(data))))
    assert sum(size for _, size in wrote) == -(-file.size // PAGE) * PAGE
    assert not listing.gaps


@pytest.mark.parametrize("lie", ["loop", "nowhere"])
def test_a_list_of_inodes_that_lies_is_a_gap_and_hides_no_other_file_system(
    den: Den, lie: str
) -> None:
    before = den.files()
    link = before[FILE].address + den.offset("inode", "i_sb_list")
    to = link if lie == "loop" else NOWHERE
    with den.ram.altered(den.pa(link), struct.pack("<Q", to)), cpu_seconds(FEW_SECONDS):
        listing = den.linux.cached_files()
    assert listing.gaps
    elsewhere = {path for path, file in before.items() if file.device != before[FILE].device}
    assert elsewhere <= {file.path for file in listing}
    assert elsewhere


def test_file_systems_in_a_loop_are_a_gap_and_end(den: Den) -> None:
    head = address(den.linux.kernel.symbols, "super_blocks")
    first = den.word(head)
    with den.ram.altered(den.pa(first), struct.pack("<Q", first)), cpu_seconds(FEW_SECONDS):
        listing = den.linux.cached_files()
    assert listing.gaps


def test_more_pages_than_there_is_memory_is_a_gap(den: Den) -> None:
    before = den.files()
    victim = before[FILE]
    place = den.offset("inode", "i_data") + den.offset("address_space", "nrpages")
    with den.ram.altered(den.pa(victim.address + place), struct.pack("<Q", 1 << 60)):
        listing = den.linux.cached_files()
    assert victim.address in {gap.address for gap in listing.gaps}
    assert set(before) - {file.path for file in listing} == {FILE}


@pytest.mark.parametrize("lie", ["its own tail", "a tail of nobody"])
def test_a_struct_page_that_has_no_head_has_no_use(den: Den, lie: str) -> None:
    memmap = den.linux.memmap
    page = memmap.page_at(den.pa(den.linux.kernel.image.start))
    to = page if lie == "its own tail" else NOWHERE
    word = page + den.offset("page", "compound_head", "compound_info")
    with den.ram.altered(den.pa(word), struct.pack("<Q", to | 1)):
        (use,) = memmap.uses(memmap.pa_of(page), 1)
    assert use is None


def test_page_tables_that_lead_to_themselves_end(den: Den) -> None:
    process = next(row for row in den.linux.processes() if row.pid == 1)
    root = den.linux.process_image(process).space.root
    entry = den.ram.buffer[root : root + 8]
    looping = struct.pack("<Q", root | struct.unpack("<Q", entry)[0] & 0xFFF)
    with den.ram.altered(root, looping), cpu_seconds(FEW_SECONDS):
        listing = den.linux.process_memory(process)
    assert listing.items
    assert {piece.held for piece in listing} <= set(Held)
