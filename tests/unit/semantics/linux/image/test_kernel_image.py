"""Finding the kernel's image from the page tables of any vCPU."""

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL, X86_64_5_LEVEL
from qvmi.errors import UnknownGuest
from qvmi.memory.address_space import LinearRange
from qvmi.semantics.linux.image.kernel_image import KernelImage, find_kernel_image
from tests.synthetic.guest import IMAGE_PA, LINK_START, MIB, ROOT, Guest, GuestOptions
from tests.synthetic.page_tables import PRESENT, PageTables
from tests.synthetic.ram import Ram
from tests.synthetic.registers import vcpu

USER_HALF = ROOT | 0x1000


def image_of(guest: Guest) -> KernelImage:
    return find_kernel_image([guest.registers], guest.ram)


def misses(ram: Ram, *vcpus: object) -> tuple[str, ...]:
    with pytest.raises(UnknownGuest) as caught:
        find_kernel_image(vcpus, ram)  # type: ignore[arg-type] # a test's own list of registers
    return caught.value.evidence


# ------------------------------------------------------------------------------------------- found


@pytest.mark.parametrize("slide", [0, 2 * MIB, 0x3E00_0000])
@pytest.mark.parametrize(("levels", "geometry"), [(4, X86_64_4_LEVEL), (5, X86_64_5_LEVEL)])
def test_the_image_is_found_wherever_it_was_moved(
    levels: int, slide: int, geometry: object
) -> None:
    image = image_of(Guest(GuestOptions(levels=levels, slide=slide)))
    start = LINK_START + slide
    assert (image.start, image.end, image.pa) == (start, start + 6 * MIB, IMAGE_PA)
    assert (image.root, image.geometry) == (ROOT, geometry)
    assert image.linear == LinearRange(Va(start), Va(start + 6 * MIB), Pa(IMAGE_PA))


def test_the_parts_of_the_image_are_told_by_their_rights() -> None:
    guest = Guest()
    image = image_of(guest)

    def starts(*, writable: bool, executable: bool) -> list[int]:
        runs = image.runs(guest.ram, writable=writable, executable=executable)
        return [run.va for run in runs]

    assert starts(writable=False, executable=True) == [guest.start]
    assert starts(writable=False, executable=False) == [guest.rodata]
    assert starts(writable=True, executable=False) == [guest.data]


def test_an_image_not_protected_yet_is_found_too() -> None:
    image = image_of(Guest(GuestOptions(protected=False)))
    assert [(run.va, run.size) for run in image.extents] == [(image.start, 6 * MIB)]


def test_parts_with_gaps_between_them_are_one_image() -> None:
    guest = Guest()
    guest.tables.map(guest.data + 8 * MIB, guest.pa_of(guest.data + 8 * MIB), executable=False)
    assert image_of(guest).end == guest.data + 8 * MIB + 4096


def test_what_is_mapped_from_elsewhere_in_memory_is_no_part_of_it() -> None:
    guest = Guest()
    guest.tables.map(guest.data + 8 * MIB, 0x5000, executable=False)
    assert image_of(guest).end == guest.data + 2 * MIB


def test_the_exception_handlers_are_evidence() -> None:
    guest = Guest()
    claims = [one.claim for one in image_of(guest).evidence]
    assert claims[1] == f"exception handlers in the image at {guest.start + 0x1234:#x}"


@pytest.mark.parametrize("idt_base", [0, 0x1234_5000, (1 << 64) - 8])
def test_an_interrupt_table_that_cannot_be_read_is_no_evidence(idt_base: int) -> None:
    guest = Guest()
    image = find_kernel_image([vcpu(ROOT, idt_base=idt_base)], guest.ram)
    assert len(image.evidence) == 1


def test_the_first_vcpu_that_runs_a_kernel_is_enough() -> None:
    guest = Guest()
    image = find_kernel_image([vcpu(paging=False), vcpu(ROOT, index=1)], guest.ram)
    assert "vCPU 1" in image.evidence[0].source


# ---------------------------------------------------------------------------- two halves of page tables


def test_on_the_user_half_the_kernel_half_is_found() -> None:
    guest = Guest(GuestOptions(user_half=True))
    image = image_of(guest)
    assert (image.root, image.page_table_isolation, image.end) == (ROOT, True, guest.data + 2 * MIB)


def test_on_the_kernel_half_the_user_half_is_noticed() -> None:
    guest = Guest(GuestOptions(user_half=True))
    image = find_kernel_image([vcpu(ROOT)], guest.ram)
    assert (image.root, image.page_table_isolation) == (ROOT, True)


def test_without_a_user_half_there_is_no_isolation() -> None:
    assert not image_of(Guest()).page_table_isolation


def test_a_single_page_table_may_lie_on_an_odd_page() -> None:
    guest = Guest()
    guest.ram.write(0x15000, guest.ram.read(Pa(ROOT), 4096))
    image = find_kernel_image([vcpu(0x15000)], guest.ram)
    assert (image.root, image.page_table_isolation) == (0x15000, False)


def test_two_processes_page_tables_side_by_side_are_no_pair() -> None:
    guest = Guest()
    guest.ram.write(USER_HALF, guest.ram.read(Pa(ROOT), 4096))
    for root in (ROOT, USER_HALF):
        image = find_kernel_image([vcpu(root)], guest.ram)
        assert (image.root, image.page_table_isolation) == (root, False)


@pytest.mark.parametrize("root", [ROOT, 0x15000])
def test_a_program_cannot_put_its_own_image_beside_the_page_table(root: int) -> None:
    # A page next to the kernel's top-level table is a program's, which fills it with page tables of
    # its own making that map a larger image elsewhere.
    guest = Guest()
    guest.ram.write(root, guest.ram.read(Pa(ROOT), 4096))
    forged = PageTables(guest.ram, root ^ 0x1000, free=4 * MIB)
    guest.ram.write(root ^ 0x1000, bytes(4096))
    for number in range(16):
        forged.map(LINK_START + number * 2 * MIB, 4 * MIB + number * 2 * MIB, 2 * MIB)
    image = find_kernel_image([vcpu(root)], guest.ram)
    assert (image.root, image.start, image.pa) == (root, guest.start, IMAGE_PA)


# ------------------------------------------------------------------------------------------- not found


def test_each_vcpu_says_why_it_runs_no_kernel() -> None:
    found = misses(
        Ram(MIB),
        vcpu(index=0, paging=False),
        vcpu(index=1, long_mode=False),
        vcpu(index=2, smm=True),
        vcpu(0x5000, index=3),
    )
    assert [line.split(":")[0] for line in found] == ["vCPU 0", "vCPU 1", "vCPU 2", "vCPU 3"]
    for line, words in zip(
        found, ["paging is off", "not in long mode", "system management", "CR3 0x5000"], strict=True
    ):
        assert words in line


def test_without_any_vcpu_there_is_no_evidence() -> None:
    assert misses(Ram(MIB)) == ()


def mapped(*pages: tuple[int, int, int, bool, bool]) -> Ram:
    """RAM with page tables that map (va, pa, size, writable, executable)."""
    ram = Ram(4 * MIB)
    tables = PageTables(ram, ROOT, free=0x20000)
    for va, pa, size, writable, executable in pages:
        tables.map(va, pa, size, writable=writable, executable=executable)
    return ram


@pytest.mark.parametrize(
    "pages",
    [
        [],
        # too small for a kernel
        [(LINK_START, 0, 2 * MIB, True, True)],
        # does not begin where an image can
        [
            (LINK_START + 0x1000, 0x1000, 4096, True, True),
            (LINK_START + 8 * MIB, 8 * MIB, 4096, True, True),
        ],
        # no code
        [
            (LINK_START, 0, 2 * MIB, True, False),
            (LINK_START + 4 * MIB, 4 * MIB, 2 * MIB, True, False),
        ],
        # no data, as in the user half of a pair whose other half is gone
        [
            (LINK_START, 0, 2 * MIB, False, True),
            (LINK_START + 4 * MIB, 4 * MIB, 2 * MIB, False, True),
        ],
        # outside of the image's gigabyte
        [(0xFFFF_FFFF_4000_0000, 0, 1 << 30, True, True)],
        [(0x4000_0000, 0, 1 << 30, True, True)],
        # a gigabyte at once is no image
        [(0xFFFF_FFFF_8000_0000, 0, 1 << 30, True, True)],
    ],
)
def test_what_is_not_mapped_as_a_kernel_is_none(
    pages: list[tuple[int, int, int, bool, bool]],
) -> None:
    assert "maps no kernel image" in misses(mapped(*pages), vcpu(ROOT))[0]


def test_page_tables_of_thousands_of_pieces_are_no_kernels() -> None:
    ram = Ram(8 * MIB)
    tables = PageTables(ram, ROOT, free=0x20000)
    for number in range(2048):
        tables.map(LINK_START + number * 8192, number * 4096 % MIB, writable=bool(number % 2))
    assert "maps no kernel image" in misses(ram, vcpu(ROOT))[0]


def test_page_tables_that_lead_to_themselves_are_no_kernels() -> None:
    ram = Ram(MIB)
    for entry in range(512):
        ram.write_u64(ROOT + 8 * entry, ROOT | PRESENT)
    assert "maps no kernel image" in misses(ram, vcpu(ROOT), vcpu(ROOT, five_levels=True))[0]


def test_the_same_page_table_on_many_vcpus_is_looked_at_once() -> None:
    ram = Ram(MIB)
    found = misses(ram, *(vcpu(0x5000, index=number) for number in range(500)))
    assert len(found) == 500
    assert ram.reads < 10


def test_a_root_outside_of_memory_maps_nothing() -> None:
    assert "CR3 0xdead0000" in misses(Ram(MIB), vcpu(0xDEAD_0000))[0]
