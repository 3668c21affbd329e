"""Finding an aarch64 kernel's image: by a note that its own page tables bear out, or by registers."""

import struct
from dataclasses import replace
from itertools import chain

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.aarch64 import Registers
from qvmi.arch.paging import Half, aarch64_geometry
from qvmi.errors import UnknownGuest
from qvmi.semantics.linux.image.aarch64_image import aarch64_images_by_notes, find_aarch64_image
from qvmi.semantics.linux.image.image_search import find_image
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.image.kernel_map import with_direct_map, with_own_tables
from qvmi.semantics.linux.image.vmcoreinfo import find_vmcoreinfo
from qvmi.semantics.linux.kernel.dump_discovery import discover_in_dump
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.aarch64_tables import PXN, READ_ONLY, UXN, Aarch64Tables
from tests.synthetic.ram import Ram
from tests.synthetic.symbols import KnownSymbols

MIB = 1 << 20
RAM_START = 0x4000_0000
RAM_SIZE = 48 * MIB
ROOT = RAM_START + 0x10_0000
IMAGE_PA = RAM_START + 2 * MIB
NOTE_PA = RAM_START + 0x8_0000
START = 0xFFFF_95F5_4180_0000
TEXT, RODATA, DATA = START + 0x1_0000, START + 2 * MIB, START + 8 * MIB
END = DATA + 2 * MIB
VECTORS = TEXT + 0x800
OWN_TABLES = RODATA + 0x1000
OTHER_PA = RAM_START + 24 * MIB
OTHER_START = START + 512 * MIB
OTHER_ROOT = OTHER_PA + MIB
NOT_GLOBAL = 1 << 11  # DDI 0487, D8.3.2
EL0, EL1, AARCH32 = 0, 0x3C5, 0x10
IDLE = Registers(0, (0,) * 31, Va(0), Va(TEXT + 0x100), EL1)
CODE, CONSTANTS, VARIABLES = READ_ONLY | UXN, READ_ONLY | UXN | PXN, UXN | PXN


class Kernel:
    """RAM with a kernel's page tables, which lie in its read-only data."""

    def __init__(self, va_bits: int = 52, flags: int = 0) -> None:
        self.va_bits = va_bits
        self.flags = flags
        self.ram = Ram(RAM_SIZE, start=RAM_START)
        self.root = self.pa_of(OWN_TABLES)
        self.tables = Aarch64Tables(self.ram, self.root, free=ROOT, va_bits=self.va_bits)
        self._map(START, TEXT - START, CONSTANTS)
        self._map(TEXT, RODATA - TEXT, CODE)
        self._map(RODATA, 2 * MIB, CONSTANTS)
        # What was only for the start, behind the read-only data, is gone.
        self._map(DATA, END - DATA, VARIABLES)

    def _map(self, va: int, size: int, flags: int) -> None:
        self.tables.map_run(va, self.pa_of(va), size, flags | self.flags)

    def pa_of(self, va: int) -> int:
        return va - START + IMAGE_PA

    def note(self, pa: int = NOTE_PA, **changes: str) -> None:
        values = {
            "OSRELEASE": "6.12.0-synthetic",
            "PAGESIZE": "4096",
            "SYMBOL(swapper_pg_dir)": f"{OWN_TABLES:x}",
            "SYMBOL(_stext)": f"{TEXT:x}",
            "NUMBER(kimage_voffset)": f"{START - IMAGE_PA:#x}",
            "NUMBER(TCR_EL1_T1SZ)": f"{64 - self.va_bits:#x}",
        } | changes
        text = "\n".join(f"{key}={value}" for key, value in values.items() if value).encode()
        self.ram.write(pa, struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text)

    @property
    def told(self) -> Registers:
        """A vCPU whose system registers are known."""
        shift = {52: 1 << 59, 48: 0}[self.va_bits]
        tcr = shift | 2 << 30 | (64 - self.va_bits) << 16
        ttbr = 0x6C << 48 | self.root | 1  # with an ASID, and shared by all vCPUs (CnP)
        return replace(
            IDLE, ttbr1_el1=ttbr, tcr_el1=tcr, sctlr_el1=1, vbar_el1=Va(VECTORS), sp_el0=Va(0)
        )

    def image(self, *vcpus: Registers) -> KernelImage:
        return find_aarch64_image(vcpus or (IDLE,), self.ram)

    def misses(self, *vcpus: Registers) -> str:
        with pytest.raises(UnknownGuest) as caught:
            self.image(*vcpus)
        return "\n".join(caught.value.evidence)


@pytest.fixture(params=[48, 52])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    made = Kernel(request.param)
    made.note()
    return made


def test_the_image_is_what_the_note_and_its_page_tables_say(kernel: Kernel) -> None:
    image = kernel.image()
    assert (image.start, image.end, image.pa) == (START, END, IMAGE_PA)
    assert (image.root, image.geometry) == (
        kernel.root,
        aarch64_geometry(kernel.va_bits, Half.UPPER),
    )
    assert (image.architecture, image.gate, image.page_table_isolation) == ("aarch64", None, False)
    assert [run.va for run in image.extents] == [START, TEXT, RODATA, DATA]


def test_it_is_found_whatever_the_architecture(kernel: Kernel) -> None:
    assert find_image([IDLE], kernel.ram).start == START


def test_what_a_vcpu_runs_is_evidence(kernel: Kernel) -> None:
    assert kernel.image().evidence[-1].claim.startswith(f"runs at {IDLE.pc:#x}")
    in_user_mode = replace(IDLE, cpsr=EL0, pc=Va(0x400000))
    assert kernel.image(in_user_mode).evidence[-1].claim.startswith("not confirmed")
    assert "vCPU 1" in kernel.image(in_user_mode, replace(IDLE, index=1)).evidence[-1].source
    in_32_bit_code = replace(IDLE, cpsr=AARCH32, x=(0,) * 15)
    assert kernel.image(in_32_bit_code).evidence[-1].claim.startswith("not confirmed")


def test_pages_that_are_not_global_mean_that_user_mode_has_tables_of_its_own() -> None:
    kernel = Kernel(flags=NOT_GLOBAL)
    kernel.note()
    assert kernel.image().page_table_isolation


def test_neither_modules_nor_other_pages_near_it_are_parts_of_it(kernel: Kernel) -> None:
    kernel.tables.map(END + 4 * MIB, RAM_START, VARIABLES)
    kernel.tables.map(START - 100 * MIB, kernel.pa_of(START) + 0x5000, CODE)
    far = START + 64 * MIB  # at the same distance, but behind a hole larger than a kernel leaves
    kernel.tables.map(far, kernel.pa_of(far), VARIABLES)
    assert (kernel.image().start, kernel.image().end) == (START, END)


# ---------------------------------------------------------------------------------- not to be believed


@pytest.mark.parametrize(
    "changes",
    [
        {"SYMBOL(swapper_pg_dir)": f"{TEXT:x}"},
        {"SYMBOL(swapper_pg_dir)": ""},
        {"SYMBOL(_stext)": f"{RODATA:x}"},
        {"SYMBOL(_stext)": "0"},
        {"NUMBER(kimage_voffset)": f"{START - IMAGE_PA + 4096:#x}"},
        {"NUMBER(kimage_voffset)": "-1"},
        {"NUMBER(TCR_EL1_T1SZ)": "0x19"},
        {"NUMBER(TCR_EL1_T1SZ)": "-1"},
        {"NUMBER(TCR_EL1_T1SZ)": ""},
        {"PAGESIZE": ""},
    ],
    ids=str,
)
def test_a_note_that_the_page_tables_do_not_bear_out_is_not_believed(
    kernel: Kernel, changes: dict[str, str]
) -> None:
    kernel.note(NOTE_PA, **changes)
    assert "no kernel is described" in kernel.misses()
    # Nor does it hide a true one behind it.
    kernel.note(NOTE_PA + 0x1_0000)
    assert kernel.image().start == START


@pytest.mark.parametrize("size", ["16384", "65536"])
def test_a_kernel_with_larger_pages_is_named(kernel: Kernel, size: str) -> None:
    kernel.note(PAGESIZE=size)
    assert f"a kernel with pages of {size} bytes" in kernel.misses()


def forge(kernel: Kernel, *, executable: bool) -> None:
    """A whole second kernel in the guest's memory, before the first: the same tables, elsewhere."""
    moved = 20 * MIB
    root = kernel.root + moved
    copy = Aarch64Tables(kernel.ram, root, free=ROOT + 0x8_0000, va_bits=kernel.va_bits)
    flags = {START: CONSTANTS, TEXT: CODE if executable else CONSTANTS, RODATA: CONSTANTS}
    for va, size in ((START, TEXT - START), (TEXT, RODATA - TEXT), (RODATA, 2 * MIB)):
        copy.map_run(va, kernel.pa_of(va) + moved, size, flags[va])
    copy.map_run(DATA, kernel.pa_of(DATA) + moved, END - DATA, VARIABLES)
    copy.map_run(TEXT + 64 * MIB, kernel.pa_of(TEXT) + moved, 4096, CODE)
    kernel.note(NOTE_PA - 0x1_0000, **{"NUMBER(kimage_voffset)": f"{START - IMAGE_PA - moved:#x}"})


def test_of_two_kernels_the_one_that_a_vcpu_runs_is_believed(kernel: Kernel) -> None:
    forge(kernel, executable=True)
    # Code that only the true kernel has.
    kernel.tables.map(START + 100 * MIB, RAM_START, CODE)
    runs = replace(IDLE, pc=Va(START + 100 * MIB))
    assert kernel.image(runs).pa == IMAGE_PA


def test_of_two_kernels_that_nobody_runs_none_is_believed(kernel: Kernel) -> None:
    forge(kernel, executable=True)
    assert "2 kernels are described" in kernel.misses(replace(IDLE, cpsr=EL0))


def test_a_forged_kernel_without_code_is_no_rival(kernel: Kernel) -> None:
    forge(kernel, executable=False)
    assert kernel.image(replace(IDLE, cpsr=EL0)).pa == IMAGE_PA


def test_many_notes_with_large_tables_are_looked_at_within_bounds() -> None:
    kernel = Kernel()
    kernel.tables.free = RAM_START + 14 * MIB
    around = (range(START - 100 * MIB, START, 2 * MIB), range(END, START + 200 * MIB, 2 * MIB))
    for va in chain(*around):
        kernel.tables.map(va + 0x1000 * (va >> 21 & 1), RAM_START, VARIABLES)
    for number in range(2000):
        place = {"SYMBOL(_stext)": f"{TEXT + 0x100 * number:x}"}
        kernel.note(RAM_START + 30 * MIB + 0x1000 * number, **place)
    with cpu_seconds(60), peak_mib(64):
        assert kernel.image(replace(IDLE, cpsr=EL0)).start == START


# ------------------------------------------------------------------------------------------ by registers


def test_where_registers_are_known_no_note_is_needed() -> None:
    for va_bits in (48, 52):
        kernel = Kernel(va_bits)
        image = kernel.image(kernel.told)
        assert (image.start, image.end, image.root) == (START, END, kernel.root)
        assert (image.gate, image.evidence[-1].source) == (VECTORS, "VBAR_EL1")


def test_vectors_outside_of_any_image_are_told() -> None:
    kernel = Kernel()
    assert "no kernel image around" in kernel.misses(replace(kernel.told, vbar_el1=Va(0x1000)))


@pytest.mark.parametrize(
    "changes", [{"sctlr_el1": 0}, {"tcr_el1": 1 << 30 | 16 << 16}, {"tcr_el1": 2 << 30}]
)
def test_registers_that_mean_no_pages_of_4_kib_are_told(changes: dict[str, int]) -> None:
    kernel = Kernel()
    told = replace(kernel.told, **changes)  # type: ignore[arg-type] # numbers all of them
    assert "no address translation in pages of 4 KiB" in kernel.misses(told)


def test_nothing_at_all_is_no_kernel() -> None:
    empty = Ram(MIB, start=RAM_START)
    with pytest.raises(UnknownGuest, match="gdbstub"):
        find_aarch64_image([IDLE], empty)


# ------------------------------------------------------------------------------------- its own variables


def test_the_kernels_own_tables_are_known_by_their_name(kernel: Kernel) -> None:
    image = replace(kernel.image(), root=Pa(0))
    own, evidence = with_own_tables(
        image, kernel.ram, KnownSymbols({}, {"swapper_pg_dir": OWN_TABLES})
    )
    assert (own.root, evidence[0].source) == (kernel.root, "swapper_pg_dir")
    none, evidence = with_own_tables(image, kernel.ram, KnownSymbols({}, {"swapper_pg_dir": DATA}))
    assert (none.root, evidence) == (0, ())


# memory.rst: the linear map begins the half; a kernel made for 52 bits on a processor with 48 counts
# from where it would with 52, and takes the difference off by memstart_addr.
@pytest.mark.parametrize(
    ("va_bits", "first", "memstart"),
    [
        (52, 0xFFF0_0000_0000_0000, RAM_START),
        (48, 0xFFFF_0000_0000_0000, RAM_START),
        (48, 0xFFFF_0000_0000_0000, 0xFFF1_0000_4000_0000),
        (48, 0xFFFF_0000_0012_0000, RAM_START - 0x12_0000),
    ],
)
def test_the_linear_map_is_where_the_page_tables_have_it(
    va_bits: int, first: int, memstart: int
) -> None:
    kernel = Kernel(va_bits)
    kernel.note()
    kernel.tables.map(first + IMAGE_PA - RAM_START, IMAGE_PA, VARIABLES)
    kernel.ram.write_u64(kernel.pa_of(DATA), memstart)
    symbols = KnownSymbols({}, {"memstart_addr": DATA})
    image = kernel.image()
    space, evidence = with_direct_map(image, image.space(kernel.ram), symbols)
    assert evidence[0].claim == f"direct map of RAM at {first:#x}"
    assert space.translate(Va(first + 0x123_4567)) == RAM_START + 0x123_4567


def test_a_linear_map_that_is_not_mapped_is_not_used(kernel: Kernel) -> None:
    kernel.ram.write_u64(kernel.pa_of(DATA), RAM_START)
    image = kernel.image()
    space = image.space(kernel.ram)
    assert with_direct_map(image, space, KnownSymbols({}, {"memstart_addr": DATA})) == (space, ())


# ------------------------------------------------------------------------------------------- in a dump


def in_dump(kernel: Kernel) -> list[KernelImage]:
    return list(aarch64_images_by_notes(kernel.ram, find_vmcoreinfo(kernel.ram)))


def test_in_a_dump_the_note_alone_leads_to_the_same_image(kernel: Kernel) -> None:
    (image,) = in_dump(kernel)
    live = kernel.image()
    assert replace(live, evidence=()) == replace(image, evidence=())
    assert not any("vCPU" in item.claim for item in image.evidence)


def test_in_a_dump_a_copy_of_the_note_is_of_the_same_kernel(kernel: Kernel) -> None:
    kernel.note(NOTE_PA + 0x4000)
    assert len(in_dump(kernel)) == 1


def test_in_a_dump_a_note_that_page_tables_do_not_bear_out_leads_nowhere() -> None:
    kernel = Kernel()
    kernel.note(NOTE_PA, **{"SYMBOL(_stext)": f"{RODATA:x}"})  # which is no code
    assert not in_dump(kernel)


def test_in_a_dump_none_of_several_kernels_is_believed(kernel: Kernel) -> None:
    """A second one could be a program's forgery, or what a reset has left."""
    place = NOTE_PA + 0x4000
    other = Aarch64Tables(kernel.ram, OTHER_ROOT, free=OTHER_ROOT + 4096, va_bits=kernel.va_bits)
    other.map_run(OTHER_START, OTHER_PA, 4 * MIB, CODE)
    other.map_run(OTHER_START + 4 * MIB, OTHER_PA + 4 * MIB, 2 * MIB, VARIABLES)
    kernel.note(place, **{
        "SYMBOL(swapper_pg_dir)": f"{OTHER_START + OTHER_ROOT - OTHER_PA:x}",
        "SYMBOL(_stext)": f"{OTHER_START:x}",
        "NUMBER(kimage_voffset)": f"{OTHER_START - OTHER_PA:#x}",
    })  # fmt: skip
    assert len(in_dump(kernel)) == 2
    with pytest.raises(UnknownGuest, match="several aarch64 kernels") as caught:
        discover_in_dump(kernel.ram)
    assert sum("kernel image at" in line for line in caught.value.evidence) == 2
