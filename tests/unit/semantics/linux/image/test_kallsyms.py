"""The two ways to find kallsyms in a guest, over a guest made by hand."""

import pytest

from qvmi.errors import CorruptTable, MemoryFault
from qvmi.semantics.linux.image.kallsyms import FINDERS, tables_by_form, tables_by_vmcoreinfo
from qvmi.semantics.linux.image.kernel_image import KernelImage, find_kernel_image
from tests.synthetic.guest import MIB, NOTE_PA, Guest, GuestOptions
from tests.synthetic.kallsyms import Order


def image_of(guest: Guest) -> KernelImage:
    return find_kernel_image([guest.registers], guest.ram)


ORDERS: list[Order] = ["old", "new", "place-relative"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seqs", [True, False])
@pytest.mark.parametrize("finder", FINDERS)
def test_the_tables_are_found_in_either_way(finder: object, order: Order, *, seqs: bool) -> None:
    guest = Guest(GuestOptions(order=order, seqs=seqs))
    ways = {one: one(guest.ram, image_of(guest)) for one in FINDERS}
    tables = ways[finder]  # type: ignore[index] # pytest passes the finder itself
    assert (tables.names, tables.count) == (guest.kallsyms.at["names"], guest.kallsyms.count)
    assert tables.offsets == guest.kallsyms.at["offsets"]
    assert tables.seqs_of_names == guest.kallsyms.at.get("seqs_of_names", 0)
    assert len(set(ways.values())) == 1


def test_the_tables_are_found_before_read_only_data_is_protected() -> None:
    guest = Guest(GuestOptions(protected=False))
    assert tables_by_form(guest.ram, image_of(guest)).names == guest.kallsyms.at["names"]


def test_the_form_is_found_without_a_note() -> None:
    guest = Guest(GuestOptions(note=False))
    assert tables_by_form(guest.ram, image_of(guest)).count == guest.kallsyms.count


def test_an_image_without_tables_says_what_was_missing() -> None:
    guest = Guest()
    guest.write_image(guest.rodata, bytes(2 * MIB))
    with pytest.raises(CorruptTable, match="no table of tokens"):
        tables_by_form(guest.ram, image_of(guest))


def test_without_a_note_in_ram_it_says_so() -> None:
    guest = Guest(GuestOptions(note=False))
    with pytest.raises(CorruptTable, match="no note of this kernel"):
        tables_by_vmcoreinfo(guest.ram, image_of(guest))


def test_a_note_of_another_kernel_is_passed_over() -> None:
    guest = Guest()
    guest.write_note(_stext=guest.start - 2 * MIB)
    with pytest.raises(CorruptTable, match="no note of this kernel"):
        tables_by_vmcoreinfo(guest.ram, image_of(guest))


def test_a_wrong_note_does_not_hide_the_right_one() -> None:
    guest = Guest()
    guest.write_note(NOTE_PA - 0x2000, kallsyms_names=guest.start)
    assert tables_by_vmcoreinfo(guest.ram, image_of(guest)).names == guest.kallsyms.at["names"]


@pytest.mark.parametrize("lie", ["kallsyms_names", "kallsyms_num_syms", "kallsyms_token_index"])
@pytest.mark.parametrize("place", [0, 0x1000, (1 << 64) - 1])
def test_a_note_that_lies_is_refused(lie: str, place: int) -> None:
    guest = Guest()
    guest.write_note(**{lie: place})
    with pytest.raises(CorruptTable, match=f"the note at {NOTE_PA + 24:#x}"):
        tables_by_vmcoreinfo(guest.ram, image_of(guest))


def test_a_note_that_does_not_name_the_tables_says_which(tmp_path: object) -> None:
    del tmp_path
    guest = Guest()
    text = guest.ram.buffer[NOTE_PA : NOTE_PA + 4096].replace(b"kallsyms_names", b"kallsyms_nomes")
    guest.ram.write(NOTE_PA, text)
    with pytest.raises(CorruptTable, match="does not name kallsyms_names"):
        tables_by_vmcoreinfo(guest.ram, image_of(guest))


def test_an_image_that_lies_outside_of_ram_is_refused() -> None:
    guest = Guest()
    image = image_of(guest)
    guest.ram.size = 8 * MIB
    for finder in FINDERS:
        with pytest.raises((CorruptTable, MemoryFault)):
            finder(guest.ram, image)
