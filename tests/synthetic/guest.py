"""A whole Linux guest made by hand: page tables, a kernel image with its tables, and what runs there."""

import struct
from dataclasses import dataclass
from functools import cache

from qvmi.addr import Pa
from qvmi.arch.x86_64 import Registers
from qvmi.view import Provenance, Taken, View
from tests.synthetic.btf import BtfBuilder, Member
from tests.synthetic.kallsyms import BuiltKallsyms, Line, Order, build_kallsyms, plain_lines
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory
from tests.synthetic.page_tables import PageTables
from tests.synthetic.ram import Ram
from tests.synthetic.registers import vcpu
from tests.synthetic.symbols import Layouts

__all__ = ["BANNER", "BUILD_ID", "LINK_START", "Guest", "GuestOptions", "kernel_types"]

MIB = 1 << 20
BANNER = b"Linux version 6.1.0-synthetic (nobody@nowhere) #1 SMP\n"
BUILD_ID = "00112233445566778899aabbccddeeff00112233"
LINK_START = 0xFFFF_FFFF_8100_0000
PAGE_OFFSET = 0xFFFF_8880_0000_0000
IDT = 0xFFFF_FE00_0000_0000
RAM_SIZE = 24 * MIB
ROOT = 0x10000  # the kernel half of a pair; the user half would lie 4 KiB above
NOTE_PA = 0x80000
IMAGE_PA = 16 * MIB
TEXT_SIZE = RODATA_SIZE = DATA_SIZE = 2 * MIB
SYMBOLS = 10_100
UPTIME_S = 100


@dataclass(frozen=True)
class GuestOptions:
    """In what a test's guest differs.

    Attributes:
        levels: of its page tables.
        slide: how far KASLR moved it.
        order: of its kallsyms tables.
        seqs: whether there is an alphabetical index.
        types: whether there is BTF.
        note: whether VMCOREINFO names the tables.
        protected: whether text and read-only data are write-protected, as after early boot.
        user_half: the vCPU runs on the user half of a pair of page tables.
        own_tables: the kernel has page tables beside those that the vCPU has loaded.
    """

    levels: int = 4
    slide: int = 0x1C60_0000
    order: Order = "old"
    seqs: bool = True
    types: bool = True
    note: bool = True
    protected: bool = True
    user_half: bool = False
    own_tables: bool = False


class Guest:
    """This is the guest, running."""

    def __init__(self, options: GuestOptions | None = None, *, mapped: bool = True) -> None:
        self.options = options or GuestOptions()
        self.start = LINK_START + self.options.slide
        self.rodata = self.start + TEXT_SIZE
        self.data = self.rodata + RODATA_SIZE
        self.ram = Ram(RAM_SIZE, mapped=mapped)
        self.kernel = KernelMemory(
            DATA_SIZE, ram=self.ram, start=self.data, pa=self.pa_of(self.data)
        )
        self._write_variables()
        self.kallsyms, rodata = _rodata(self.options, tuple(self.kernel.symbols.addresses.items()))
        self.ram.write(self.pa_of(self.rodata), rodata)
        self.tables = PageTables(self.ram, ROOT, free=ROOT + 0x2000, levels=self.options.levels)
        self._map()
        if self.options.own_tables:
            self.ram.write(self.pa_of(self.own_tables), self.ram.read(Pa(ROOT), 4096))
        if self.options.note:
            self.write_note()

    @property
    def registers(self) -> Registers:
        root = ROOT | 0x1000 if self.options.user_half else ROOT
        return vcpu(root, five_levels=self.options.levels == 5, idt_base=IDT)

    @property
    def own_tables(self) -> int:
        """This is where ``init_top_pgt`` lies, far behind everything else."""
        return self.data + MIB

    def view(self, *vcpus: Registers) -> View:
        return View(vcpus or (self.registers,), self.ram, Provenance(Taken.LIVE, at=1.0))

    def pa_of(self, va: int) -> int:
        return va - self.start + IMAGE_PA

    def write_image(self, va: int, data: bytes) -> None:
        self.ram.write(self.pa_of(va), data)

    def write_gate(self, handler: int) -> None:
        """This lets exception 0 be handled at an address."""
        gate = struct.pack(
            "<HHHHII", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32, 0
        )
        self.ram.write(self.pa_of(self.data), gate)

    def write_note(self, pa: int = NOTE_PA, **changes: int) -> None:
        """This writes VMCOREINFO as a note, and points the kernel's own variable to its text."""
        names = ("names", "num_syms", "token_table", "token_index")
        symbols = {f"kallsyms_{name}": self.kallsyms.at[name] for name in names}
        symbols |= {"_stext": self.start} | changes
        text = (
            f"OSRELEASE=6.1.0-synthetic\nBUILD-ID={BUILD_ID}\nKERNELOFFSET={self.options.slide:x}\n"
        )
        text += "".join(f"SYMBOL({name})={value:x}\n" for name, value in symbols.items())
        encoded = text.encode()
        header = struct.pack("<III", 11, len(encoded), 0) + b"VMCOREINFO\0\0"
        self.ram.write(pa, header + encoded)
        pointer = self.kernel.symbols.addresses["vmcoreinfo_data"]
        self.kernel.u64(pointer, PAGE_OFFSET + pa + len(header))

    def _write_variables(self) -> None:
        kernel = self.kernel
        variables = {
            name: kernel.allocate_bytes(0x100) for name in ("page_offset_base", "vmcoreinfo_data")
        }
        variables["idt_table"] = self.data
        variables["timekeeper_data"] = kernel.allocate_bytes(0x200)
        kernel.u64(variables["page_offset_base"], PAGE_OFFSET)
        kernel.u64(variables["timekeeper_data"] + 0x10 + 0x60, UPTIME_S)
        if self.options.own_tables:
            variables["init_top_pgt"] = self.own_tables
        kernel.symbols.addresses |= variables

    def _map(self) -> None:
        protected = self.options.protected
        self.tables.map(self.start, IMAGE_PA, 2 * MIB, writable=not protected)
        self.tables.map(
            self.rodata,
            IMAGE_PA + 2 * MIB,
            2 * MIB,
            writable=not protected,
            executable=not protected,
        )
        self.tables.map(self.data, IMAGE_PA + 4 * MIB, 2 * MIB, executable=not protected)
        for pa in range(0, RAM_SIZE, 2 * MIB):
            self.tables.map(PAGE_OFFSET + pa, pa, 2 * MIB, executable=False)
        self.tables.map(IDT, self.pa_of(self.data), executable=False)
        self.write_gate(self.start + 0x1234)
        if self.options.user_half:
            user = PageTables(
                self.ram, ROOT | 0x1000, free=self.tables.free, levels=self.options.levels
            )
            user.map(self.start, IMAGE_PA, 2 * MIB, writable=False)


def kernel_types(layouts: Layouts) -> BtfBuilder:
    """This describes layouts as BTF, every member as if it were a number."""
    builder = BtfBuilder()
    number = builder.int_("unsigned int", 4)
    for name, (size, members) in layouts.items():
        builder.struct_(name, size, [Member(one, number, at) for one, at in members.items()])
    return builder


CLOCK: Layouts = {
    "timekeeper": (
        0x120,
        {"tkr_mono": 0, "xtime_sec": 0x60, "wall_to_monotonic": 0x70, "offs_boot": 0x88},
    ),
    "tk_read_base": (0x38, {"xtime_nsec": 0x18, "shift": 0x14}),
    "tk_data": (0x140, {"timekeeper": 0x10}),
}


@cache
def _rodata(
    options: GuestOptions, variables: tuple[tuple[str, int], ...]
) -> tuple[BuiltKallsyms, bytes]:
    """The banner, the types and the symbol tables, and where the latter lie."""
    start = LINK_START + options.slide
    rodata = start + TEXT_SIZE
    types = kernel_types({**LAYOUTS, **CLOCK}).build() if options.types else b""
    banner_at, types_at = rodata + 0x100, rodata + 0x1000
    lines = [
        Line(start, "T", "_text"),
        Line(start, "T", "_stext"),
        Line(banner_at, "R", "linux_banner"),
    ]
    lines += [Line(at, "D", name) for name, at in variables]
    lines += plain_lines(SYMBOLS, start=start + 0x10)
    lines.append(Line(rodata + RODATA_SIZE + DATA_SIZE, "B", "_end"))
    if types:
        lines += [
            Line(types_at, "r", "__start_BTF"),
            Line(types_at + len(types), "r", "__stop_BTF"),
        ]
    tables_at = rodata + 0x10_0000
    built = build_kallsyms(
        sorted(lines, key=lambda line: line.address),
        start=tables_at,
        order=options.order,
        seqs=options.seqs,
    )
    data = bytearray(RODATA_SIZE)
    data[0x100 : 0x100 + len(BANNER)] = BANNER
    data[0x1000 : 0x1000 + len(types)] = types
    data[0x10_0000 : 0x10_0000 + len(built.data)] = built.data
    return built, bytes(data)
