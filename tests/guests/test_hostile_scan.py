"""A kernel that lies about its memory: a scan ends, tells what it found, and what nobody can tell."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Gap, Machine, Pa, Va
from qvmi.machine.scanning.scan import ScanArea
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.semantics.linux.pages.memmap import PageUse
from qvmi.semantics.rows.scan import ScanHit
from qvmi.symbols.layout import field_offset
from tests.asynchronous import asynchronous
from tests.guests import marked
from tests.guests.lab import GuestConfig, Lab
from tests.guests.marked import Marked
from tests.guests.pool import GuestPool
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

KERNELS: Final = ("5.10", "7.x")
"""The oldest and the newest: with and without a struct of their own for slabs and folios."""
FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
NOWHERE: Final = 0xFFFF_8BAD_4141_4140
PRESENT: Final = 0x67


@dataclass(frozen=True, slots=True)
class Den:
    """This is a guest with marks that stands still, and its memory to write to."""

    planted: Marked
    profiles: Path
    ram: GuestRam


@pytest.fixture(scope="module", params=KERNELS)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        planted = marked.mark(GuestPool(lab, stack).restore(GuestConfig(kernel=request.param)))
        planted.guest.monitor.execute("stop")
        yield Den(planted, profiles, stack.enter_context(guest_ram(planted.guest)))


async def look(
    machine: Machine, mark: str, *, pid: int | None = None, area: ScanArea | None = None
) -> tuple[list[ScanHit], list[Gap]]:
    scan = machine.scan(ScanRules.of_patterns((mark,)), pid=pid, area=area)
    with cpu_seconds(FEW_SECONDS):
        return [hit async for hit in scan], scan.gaps


def offset(machine: Machine, type_name: str, *names: str) -> int:
    return field_offset(machine.symbols, type_name, *names)


async def used(machine: Machine, hit: ScanHit) -> PageUse:
    return await machine.query(lambda guest: guest.memmap.use_of(hit.address))


def pa_of(machine: Machine, va: int) -> Pa:
    return machine.kernel_space.translate(Va(va))


@asynchronous
async def test_page_tables_that_lead_to_themselves_are_a_gap(den: Den) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        pid = den.planted.heap_pid
        process = next(row for row in machine.guest.processes() if row.pid == pid)
        root = machine.user_space(process).root
        # The first entry leads to the program's heap, as before.
        with den.ram.altered(Pa(root + 8), struct.pack("<Q", root | PRESENT) * 255):
            hits, gaps = await look(machine, marked.HEAP, pid=pid)
        (gap,) = (gap for gap in gaps if gap.structure == "page tables")
        assert "2 times all RAM" in gap.reason
        assert hits


@pytest.mark.parametrize("where", [0, NOWHERE])
@asynchronous
async def test_whose_file_it_is_nobody_can_tell_where_its_inode_is_nowhere(
    den: Den, where: int
) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        ((hit,), before) = await look(machine, marked.FILE, area=ScanArea.PAGE_CACHE)
        assert (hit.owners[0].name, before) == (marked.PATH, [])
        mapping = (await used(machine, hit)).mapping
        place = pa_of(machine, mapping + offset(machine, "address_space", "host"))
        with den.ram.altered(place, struct.pack("<Q", where)):
            ((lied,), gaps) = await look(machine, marked.FILE)
    assert (lied.owners[0].kind, lied.owners[0].name) == ("page cache", "")
    assert lied.owners[0].offset == marked.FILE_OFFSET
    assert {gap.structure for gap in gaps} == ({"address_space.host"} if where else set())


@asynchronous
async def test_a_tree_of_those_who_map_a_page_that_is_a_loop_is_a_gap(den: Den) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        hits, _ = await look(machine, marked.ARGUMENT)
        hit = next(hit for hit in hits if hit.owners[0].kind == "process")
        anon_vma = (await used(machine, hit)).mapping
        root = anon_vma + offset(machine, "anon_vma", "rb_root")
        node = int.from_bytes(machine.kernel_space.read(Va(root), 8), "little")
        left = node + offset(machine, "rb_node", "rb_left")
        with den.ram.altered(pa_of(machine, left), struct.pack("<Q", node)):
            lied, gaps = await look(machine, marked.ARGUMENT)
    assert {gap.structure for gap in gaps} == {"anon_vma.rb_root"}
    assert [one.address for one in lied] == [one.address for one in hits]


@asynchronous
async def test_a_lie_about_who_maps_a_page_is_not_believed(den: Den) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        hits, _ = await look(machine, marked.ARGUMENT)
        hit = next(hit for hit in hits if hit.owners[0].kind == "process")
        page = (await used(machine, hit)).page
        place = pa_of(machine, page + offset(machine, "page", "index", "__folio_index"))
        with den.ram.altered(place, struct.pack("<Q", 0x1234)):
            lied, _ = await look(machine, marked.ARGUMENT)
    (same,) = (one for one in lied if one.address == hit.address)
    assert [owner.kind for owner in same.owners] == ["anonymous"]


@asynchronous
async def test_a_slab_without_a_cache_is_a_gap(den: Den) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        hits, _ = await look(machine, marked.NAME)
        hit = next(hit for hit in hits if hit.owners[0].name == "dentry")
        of_slab = "page" if machine.symbols.size_of("slab") is None else "slab"
        place = (await used(machine, hit)).page + offset(machine, of_slab, "slab_cache")
        with den.ram.altered(pa_of(machine, place), struct.pack("<Q", NOWHERE)):
            lied, gaps = await look(machine, marked.NAME)
    (same,) = (one for one in lied if one.address == hit.address)
    assert (same.owners[0].kind, same.owners[0].name) == ("slab", "")
    assert {gap.structure for gap in gaps} == {"slab.slab_cache"}


@asynchronous
async def test_a_page_whose_struct_lies_has_no_owner_and_a_gap(den: Den) -> None:
    async with qvmi.attach(den.planted.guest.qmp, cache=den.profiles) as machine:
        ((hit,), _) = await look(machine, marked.FILE)
        page = (await used(machine, hit)).page
        place = pa_of(machine, page + offset(machine, "page", "compound_head", "compound_info"))
        with den.ram.altered(place, struct.pack("<Q", NOWHERE | 1)):
            ((lied,), gaps) = await look(machine, marked.FILE)
    assert (lied.address, lied.owners) == (hit.address, ())
    assert {gap.structure for gap in gaps} == {"struct page"}
