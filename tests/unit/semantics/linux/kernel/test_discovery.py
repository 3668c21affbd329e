"""From registers and RAM to symbols, over a guest made by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qvmi.addr import Pa, Va
from qvmi.errors import CorruptTable, MemoryFault, UnknownGuest
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.kernel.discovery import (
    DEFAULT_LINK_START,
    Kernel,
    discover,
    recognise,
    tables_by_form,
    tables_by_vmcoreinfo,
)
from qvmi.symbols.kallsyms import KallsymsTables
from qvmi.symbols.profile import ProfileCache
from tests.synthetic.guest import (
    BANNER,
    BUILD_ID,
    IMAGE_PA,
    LINK_START,
    MIB,
    NOTE_PA,
    PAGE_OFFSET,
    ROOT,
    Guest,
    GuestOptions,
)
from tests.synthetic.kallsyms import Order
from tests.synthetic.registers import vcpu
from tests.synthetic.symbols import KnownSymbols

OTHER_BANNER = b"Linux version 9.9.9-another (nobody@nowhere) #1 SMP\n"


def claims(kernel: Kernel) -> str:
    return "\n".join(f"{one.claim} | {one.source}" for one in kernel.evidence)


def refusal(guest: Guest, **changes: object) -> UnknownGuest:
    with pytest.raises(UnknownGuest) as caught:
        discover(guest.view(), **changes)  # type: ignore[arg-type] # as the tests below name them
    return caught.value


# ---------------------------------------------------------------------------------------------- cold


ORDERS: list[Order] = ["old", "new", "place-relative"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levels", [4, 5])
def test_an_unknown_kernel_is_understood(order: Order, levels: int) -> None:
    guest = Guest(GuestOptions(order=order, levels=levels))
    kernel = discover(guest.view())
    assert kernel.release == "6.1.0-synthetic"
    assert kernel.banner == BANNER.rstrip()
    assert (kernel.link_start, kernel.slide) == (LINK_START, guest.options.slide)
    assert kernel.build_id == BUILD_ID
    assert kernel.symbols.find("init_task") == guest.kernel.init_task


@pytest.mark.parametrize("mapped", [True, False])
def test_memory_that_is_not_mapped_is_understood_too(*, mapped: bool) -> None:
    assert discover(Guest(mapped=mapped).view()).release == "6.1.0-synthetic"


def test_the_evidence_says_where_each_claim_comes_from() -> None:
    guest = Guest()
    told = claims(discover(guest.view()))
    for words in (
        f"kernel image at {guest.start:#x}",
        "IDT gate 0",
        "symbols | kallsyms, found by: tables_by_form",
        "linux_banner",
        f"direct map of RAM at {PAGE_OFFSET:#x}",
    ):
        assert words in told


def test_without_the_form_the_note_is_used() -> None:
    def nothing(*_: object) -> KallsymsTables:
        raise CorruptTable("kallsyms", "hidden by the test")

    guest = Guest()
    kernel = discover(guest.view(), finders=(nothing, tables_by_vmcoreinfo))
    assert "found by: tables_by_vmcoreinfo" in claims(kernel)


def test_without_a_note_the_kernel_counts_as_linked_where_all_are() -> None:
    kernel = discover(Guest(GuestOptions(note=False)).view())
    assert (kernel.link_start, kernel.build_id) == (DEFAULT_LINK_START, "")


@pytest.mark.parametrize("offset", [b"KERNELOFFSET=ffffffff80000000", b"KERNELOFFSET=-20000000000"])
def test_a_slide_that_no_kernel_can_have_is_not_believed(offset: bytes) -> None:
    guest = Guest()
    text = guest.ram.buffer[0x80000:0x81000].replace(b"KERNELOFFSET=1c600000", offset)
    guest.ram.write(0x80000, text)
    assert discover(guest.view()).link_start == DEFAULT_LINK_START


def test_the_direct_map_is_used_only_where_the_page_tables_agree() -> None:
    guest = Guest()
    guest.kernel.u64(guest.kernel.symbols.addresses["page_offset_base"], PAGE_OFFSET + 2 * MIB)
    kernel = discover(guest.view())
    assert "direct map" not in claims(kernel)
    assert kernel.space.translate(Va(PAGE_OFFSET + 0x1000)) == 0x1000


@pytest.mark.parametrize("base", [0, 0x1000, (1 << 64) - 1, 0x1234_5678_9ABC_DEF0])
def test_a_direct_map_that_lies_nowhere_is_not_used(base: int) -> None:
    guest = Guest()
    guest.kernel.u64(guest.kernel.symbols.addresses["page_offset_base"], base)
    assert "direct map" not in claims(discover(guest.view()))


def test_the_kernel_is_read_by_its_own_page_tables() -> None:
    """The vCPU's may be a process's, which ends and leaves them to others."""
    guest = Guest(GuestOptions(own_tables=True))
    own = guest.pa_of(guest.own_tables)
    kernel = discover(guest.view())
    assert (kernel.image.root, kernel.space.root) == (own, own)
    assert f"own page tables at {own:#x}" in claims(kernel)
    guest.ram.write(ROOT, bytes(4096))
    assert kernel.space.walk(Va(PAGE_OFFSET + 0x1000)).pa == 0x1000
    assert kernel.still_there()


@pytest.mark.parametrize("spoiled", [bytes(4096), b"\xff" * 4096])
def test_own_page_tables_that_do_not_map_the_kernel_are_not_used(spoiled: bytes) -> None:
    guest = Guest(GuestOptions(own_tables=True))
    guest.write_image(guest.own_tables, spoiled)
    kernel = discover(guest.view())
    assert kernel.space.root == ROOT
    assert "own page tables" not in claims(kernel)


# ---------------------------------------------------------------------------------------------- warm


@pytest.fixture
def cache(tmp_path: Path) -> ProfileCache:
    return ProfileCache(tmp_path)


def learn(guest: Guest, cache: ProfileCache) -> Kernel:
    kernel = discover(guest.view(), cache=cache)
    assert kernel.profile is not None
    cache.save(kernel.profile, kernel.image.start)
    return kernel


def no_finder(*_: object) -> KallsymsTables:
    pytest.fail("a known kernel was searched for its tables")


def test_a_kernel_seen_before_is_not_searched_again(cache: ProfileCache) -> None:
    learn(Guest(), cache)
    kernel = discover(Guest().view(), cache=cache, finders=[no_finder])
    assert "profile of this build" in claims(kernel)
    assert (kernel.build_id, kernel.link_start) == (BUILD_ID, LINK_START)


def test_a_kernel_seen_before_is_known_wherever_it_was_moved(cache: ProfileCache) -> None:
    learn(Guest(), cache)
    moved = Guest(GuestOptions(slide=0x200_0000))
    kernel = discover(moved.view(), cache=cache, finders=[no_finder])
    assert kernel.slide == 0x200_0000
    assert kernel.symbols.find("init_task") == moved.kernel.init_task


def test_another_kernel_is_not_taken_for_it(cache: ProfileCache) -> None:
    learn(Guest(), cache)
    other = Guest()
    other.write_image(other.rodata + 0x100, OTHER_BANNER)
    assert discover(other.view(), cache=cache).release == "9.9.9-another"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kernel: kernel.profile.symbols.update(init_task=Va(kernel.image.start)),
        lambda kernel: kernel.profile.symbols.update(init_task=Va(0x1000)),
    ],
)
def test_a_wrong_profile_is_noticed_and_forgotten(
    cache: ProfileCache, spoil: Callable[[Kernel], object], tmp_path: Path
) -> None:
    guest = Guest()
    kernel = learn(guest, cache)
    spoil(kernel)
    assert kernel.profile is not None
    cache.save(kernel.profile, kernel.image.start)
    again = discover(guest.view(), cache=cache)
    assert "tables_by_form" in claims(again)
    assert again.symbols.find("init_task") == guest.kernel.init_task
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        GuestOptions(),
        GuestOptions(slide=0x200_0000),
        GuestOptions(levels=5),
        GuestOptions(user_half=True),
    ],
    ids=["same", "moved", "5-levels", "user-half"],
)
def test_one_gate_is_enough_to_recognise_a_kernel_seen_before(
    cache: ProfileCache, options: GuestOptions
) -> None:
    learn(Guest(), cache)
    guest = Guest(options)
    kernel, searched = recognise(guest.view(), cache), discover(guest.view())
    assert kernel is not None
    assert kernel.image.linear == searched.image.linear
    assert kernel.image.root == searched.image.root
    assert kernel.image.page_table_isolation == searched.image.page_table_isolation
    assert (kernel.slide, kernel.build_id) == (searched.slide, searched.build_id)
    assert tables_by_form(guest.ram, kernel.image) == tables_by_form(guest.ram, searched.image)
    for words in ("profile of this build", f"image at {guest.start:#x}", "IDT gate 0"):
        assert words in claims(kernel)


def test_the_first_vcpu_whose_gate_leads_there_is_enough(cache: ProfileCache) -> None:
    guest = Guest()
    learn(guest, cache)
    in_firmware = vcpu(paging=False)
    assert recognise(guest.view(in_firmware, guest.registers), cache) is not None
    assert recognise(guest.view(in_firmware), cache) is None


@pytest.mark.parametrize(
    "handler", [0, 0x1234, LINK_START + 0x1234, (1 << 64) - 1, 0xFFFF_FFFF_9D60_1235]
)
def test_a_gate_that_leads_elsewhere_is_not_believed(cache: ProfileCache, handler: int) -> None:
    guest = Guest()
    learn(guest, cache)
    guest.write_gate(handler)
    assert recognise(guest.view(), cache) is None
    assert discover(guest.view(), cache=cache).image.start == guest.start


def test_a_gate_into_pages_that_are_no_image_is_not_believed(cache: ProfileCache) -> None:
    """Somebody has put a copy of the code at another place, without what belongs behind it."""
    guest = Guest()
    learn(guest, cache)
    copied = guest.start + 32 * MIB
    guest.tables.map(copied, IMAGE_PA, 2 * MIB, writable=False)
    guest.write_gate(copied + 0x1234)
    assert recognise(guest.view(), cache) is None
    guest.tables.map(copied + 2 * MIB, IMAGE_PA, 2 * MIB, writable=False)
    guest.tables.map(copied + 4 * MIB, IMAGE_PA, 2 * MIB)
    assert recognise(guest.view(), cache) is None


def test_another_kernel_behind_the_same_gate_is_not_taken_for_it(cache: ProfileCache) -> None:
    learn(Guest(), cache)
    other = Guest()
    other.write_image(other.rodata + 0x100, OTHER_BANNER)
    assert recognise(other.view(), cache) is None


@pytest.mark.parametrize(
    ("told", "lie"),
    [
        (BUILD_ID.encode(), b"ff" * 20),
        (b"KERNELOFFSET=1c600000", b"KERNELOFFSET=1c400000"),
    ],
)
def test_what_one_guest_says_of_itself_is_not_believed_of_another(
    cache: ProfileCache, told: bytes, lie: bytes
) -> None:
    honest, liar = Guest(), Guest()
    note = liar.ram.read(Pa(NOTE_PA), 4096)
    liar.ram.write(NOTE_PA, note.replace(told, lie))
    learned = learn(liar, cache)
    assert (learned.build_id, learned.link_start) != (BUILD_ID, LINK_START)
    for kernel in (recognise(honest.view(), cache), discover(honest.view(), cache=cache)):
        assert kernel is not None
        assert (kernel.build_id, kernel.link_start) == (BUILD_ID, LINK_START)


def test_a_cache_without_a_gate_recognises_nothing(cache: ProfileCache) -> None:
    guest = Guest()
    guest.write_gate(0)
    learn(guest, cache)
    assert recognise(guest.view(), cache) is None
    assert "profile of this build" in claims(discover(guest.view(), cache=cache))


def test_after_a_new_boot_the_kernel_is_no_longer_there() -> None:
    guest = Guest()
    kernel = discover(guest.view())
    assert kernel.still_there()
    guest.write_image(guest.rodata + 0x100, OTHER_BANNER)
    assert not kernel.still_there()


def test_after_the_end_of_the_memory_nobody_can_tell() -> None:
    guest = Guest()
    kernel = discover(guest.view())
    guest.ram.size = 0
    with pytest.raises(MemoryFault):
        kernel.still_there()


# ------------------------------------------------------------------------------------ symbols of the user's


def given(guest: Guest) -> Callable[[KernelImage, AddressSpace], KnownSymbols]:
    symbols = guest.kernel.symbols
    symbols.addresses["linux_banner"] = guest.rodata + 0x100
    return lambda _image, _space: symbols


def test_symbols_given_by_the_user_are_used() -> None:
    guest = Guest(GuestOptions(types=False))
    kernel = discover(guest.view(), symbols=given(guest), finders=[no_finder])
    assert kernel.symbols is guest.kernel.symbols
    assert (kernel.profile, kernel.release) == (None, "6.1.0-synthetic")
    assert (kernel.slide, kernel.build_id) == (guest.options.slide, BUILD_ID)
    assert "by the ISF file given" in claims(kernel)


@pytest.mark.parametrize("wrong", ["linux_banner", "init_task"])
def test_symbols_of_another_kernel_are_refused(wrong: str) -> None:
    guest = Guest()
    symbols = given(guest)
    guest.kernel.symbols.addresses[wrong] = guest.start
    error = refusal(guest, symbols=symbols)
    assert "not of the kernel that runs here" in str(error)


# ---------------------------------------------------------------------------------------------- refused


def test_no_kernel_is_a_list_of_what_each_vcpu_did() -> None:
    guest = Guest()
    with pytest.raises(UnknownGuest) as caught:
        discover(guest.view(vcpu(paging=False), vcpu(0x9000, index=1)))
    assert len(caught.value.evidence) == 2


def test_a_kernel_without_tables_lists_what_was_tried() -> None:
    guest = Guest(GuestOptions(note=False))
    guest.write_image(guest.rodata + MIB, bytes(MIB))
    error = refusal(guest)
    assert "no symbol table" in str(error)
    assert [line.split(":")[0] for line in error.evidence[-2:]] == [
        "tables_by_form",
        "tables_by_vmcoreinfo",
    ]


def test_a_kernel_without_types_says_what_to_do() -> None:
    error = refusal(Guest(GuestOptions(types=False)), finders=[tables_by_form])
    assert "CONFIG_DEBUG_INFO_BTF" in str(error)
    assert "--isf" in str(error)


@pytest.mark.parametrize(
    ("member", "value"), [("pid", 1), ("tgid", 7), ("comm", 0x6C69_7665), ("real_parent", 0)]
)
def test_a_first_task_that_is_none_is_refused(member: str, value: int) -> None:
    guest = Guest()
    guest.kernel.set_u32(guest.kernel.init_task, member, value)
    assert "init_task" in str(refusal(guest))


def test_a_first_task_whose_list_does_not_lead_back_is_refused() -> None:
    guest = Guest()
    guest.kernel.add_process(1)
    guest.kernel.u64(guest.kernel.get(guest.kernel.tasks_head) + 8, 0)
    assert "its list of tasks leads to" in str(refusal(guest))


def test_a_banner_that_is_none_is_refused() -> None:
    guest = Guest()
    guest.write_image(guest.rodata + 0x100, b"Lunix version")
    assert "linux_banner" in str(refusal(guest))


def test_a_release_that_is_no_text_is_escaped() -> None:
    guest = Guest()
    guest.write_image(guest.rodata + 0x100, b"Linux version \xff\xfe1 x\n\0")
    assert discover(guest.view()).release == "\\xff\\xfe1"
