"""From memory alone to a kernel: no register tells where anything is."""

from pathlib import Path

import pytest

from qvmi.addr import Pa, PaRange, Va
from qvmi.errors import UnknownGuest
from qvmi.semantics.linux.kernel.discovery import discover, recognise
from qvmi.semantics.linux.kernel.dump_discovery import discover_in_dump, ram_that_the_kernel_maps
from qvmi.symbols.profile import ProfileCache
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.guest import (
    BANNER,
    IMAGE_PA,
    MIB,
    PAGE_OFFSET,
    RAM_SIZE,
    ROOT,
    Guest,
    GuestOptions,
)

FAR = 23 * MIB
"""A place that neither the image nor the first MiB has."""


def move_upper_tables(guest: Guest) -> None:
    """This moves the upper two levels of page tables far away."""
    upper = guest.ram.read_u64(ROOT + 4088) & ~0xFFF
    for number, table in enumerate((ROOT, upper)):
        guest.ram.write(FAR + number * 4096, guest.ram.read(Pa(table), 4096))
        guest.ram.write(table, bytes(4096))
    guest.ram.write_u64(FAR + 4088, FAR + 4096 | 0x63)


def source(guest: Guest, *notes: bytes) -> str:
    kernel = discover_in_dump(guest.ram, vmcoreinfo=notes)
    assert kernel.banner == BANNER.rstrip()
    assert kernel.symbols.find("init_task") == guest.kernel.init_task
    return kernel.evidence[0].source


def with_own_tables(levels: int = 4, *, mapped: bool = True) -> Guest:
    """This is a guest whose page tables nothing but VMCOREINFO leads to: their form is spoiled.

    The first MiB is where a real kernel has tables for starting vCPUs; here it has none.
    """
    return Guest(GuestOptions(levels=levels, own_tables=True), mapped=mapped)


def noted(guest: Guest, **changes: str) -> bytes:
    values = {
        "SYMBOL(swapper_pg_dir)": f"{guest.own_tables:x}",
        "NUMBER(phys_base)": str(IMAGE_PA - guest.start + 0xFFFF_FFFF_8000_0000),
        "NUMBER(pgtable_l5_enabled)": str(int(guest.options.levels == 5)),
    } | changes
    return "".join(f"{key}={value}\n" for key, value in values.items()).encode()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("levels", [4, 5])
def test_page_tables_in_the_first_mib_are_found_by_their_form(levels: int, *, mapped: bool) -> None:
    told = source(Guest(GuestOptions(levels=levels), mapped=mapped))
    assert told == f"page tables at {ROOT:#x} (found by its form, {levels}-level)"


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("levels", [4, 5])
def test_page_tables_anywhere_are_found_by_their_form(levels: int, *, mapped: bool) -> None:
    guest = Guest(GuestOptions(levels=levels, note=False), mapped=mapped)
    move_upper_tables(guest)
    told = source(guest)
    assert told == f"page tables at {FAR:#x} (found by its form, {levels}-level)"


@pytest.mark.parametrize("levels", [4, 5])
def test_a_note_that_came_with_the_memory_is_asked_first(levels: int) -> None:
    guest = with_own_tables(levels)
    at = guest.pa_of(guest.own_tables)
    assert source(guest, noted(guest)) == f"page tables at {at:#x} (VMCOREINFO, {levels}-level)"


@pytest.mark.parametrize(
    "changes",
    [
        {"SYMBOL(swapper_pg_dir)": "ffffffff81000123"},
        {"SYMBOL(swapper_pg_dir)": "0"},
        {"SYMBOL(swapper_pg_dir)": "no number"},
        {"NUMBER(phys_base)": str(-(1 << 63))},
        {"NUMBER(phys_base)": str(1 << 62)},
        {"NUMBER(phys_base)": "4096"},
        {"NUMBER(pgtable_l5_enabled)": "1"},
    ],
)
def test_a_note_that_lies_is_passed_over(changes: dict[str, str]) -> None:
    guest = with_own_tables()
    assert "found by its form" in source(guest, noted(guest, **changes))


def test_a_note_of_another_kernel_is_passed_over() -> None:
    guest = with_own_tables()
    other = noted(guest, **{"SYMBOL(swapper_pg_dir)": f"{guest.own_tables - 4096:x}"})
    assert "found by its form" in source(guest, other)


def test_a_note_in_memory_leads_where_the_first_mib_does_not() -> None:
    guest = with_own_tables()
    text = noted(guest) + b"OSRELEASE=x\n"
    note = b"VMCOREINFO\0\0OSRELEASE=6.1.0-synthetic\n" + text
    header = (11).to_bytes(4, "little") + len(note[12:]).to_bytes(4, "little") + bytes(4)
    guest.ram.write(FAR, header + note)
    guest.ram.write(ROOT, bytes(4096))
    assert "VMCOREINFO" in source(guest)


def test_four_levels_are_not_taken_for_the_upper_ones_of_five() -> None:
    """The second table of five levels maps the image just as the first of four would."""
    guest = Guest(GuestOptions(levels=5))
    kernel = discover_in_dump(guest.ram)
    assert kernel.image.geometry.name == "5-level"
    assert kernel.space.walk(Va(PAGE_OFFSET)).pa == 0


def test_the_kernels_half_is_found_beside_the_users() -> None:
    guest = Guest(GuestOptions(user_half=True))
    kernel = discover_in_dump(guest.ram)
    assert kernel.image.root == ROOT
    assert kernel.image.page_table_isolation


def test_memory_without_a_kernel_is_told_what_was_looked_for() -> None:
    guest = Guest()
    guest.ram.write(0, bytes(RAM_SIZE))
    with pytest.raises(UnknownGuest, match="neither VMCOREINFO nor any page") as caught:
        discover_in_dump(guest.ram)
    assert caught.value.evidence == (
        "no page looks like the page tables of an x86-64 kernel, no note is of an aarch64 kernel",
    )


def test_a_kernel_whose_tables_are_spoiled_is_told_with_where_it_is() -> None:
    guest = Guest()
    guest.ram.write(IMAGE_PA + 3 * MIB, bytes(MIB))
    with pytest.raises(UnknownGuest) as caught:
        discover_in_dump(guest.ram)
    assert any(f"kernel image at {guest.start:#x}" in line for line in caught.value.evidence)


def test_pages_full_of_false_tables_cost_a_bounded_look() -> None:
    guest = Guest(GuestOptions(note=False))
    for number, pa in enumerate(range(MIB, IMAGE_PA, 4096)):
        guest.ram.write_u64(pa + 4088, MIB + number % 3000 * 4096 | 0x63)
        guest.ram.write_u64(pa + 2048, MIB + number * 4096 | 0x63)
    with cpu_seconds(30):
        assert "found by its form" in source(guest)


def test_what_a_dump_taught_helps_with_the_live_guest(tmp_path: Path) -> None:
    guest, cache = Guest(), ProfileCache(tmp_path)
    kernel = discover_in_dump(guest.ram, cache=cache)
    assert kernel.profile is not None
    cache.save(kernel.profile, kernel.image.start)
    again = recognise(guest.view(), cache)
    assert again is not None
    assert again.image.gate == discover(guest.view()).image.gate


def test_the_ram_is_what_the_direct_map_maps() -> None:
    kernel = discover_in_dump(Guest().ram)
    assert ram_that_the_kernel_maps(kernel) == (PaRange(Pa(0), Pa(RAM_SIZE)),)


def test_nothing_is_told_of_ram_where_the_direct_map_is_not_known() -> None:
    guest = Guest()
    kernel = discover_in_dump(guest.ram)
    guest.kernel.u64(guest.kernel.symbols.addresses["page_offset_base"], 0xDEAD << 48)
    assert ram_that_the_kernel_maps(kernel) == ()
