"""A kernel of a few symbols and types, as it lies in memory: banner, kallsyms and BTF."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.symbols.kallsyms import Addressing, KallsymsTables
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.profile import Profile
from tests.synthetic.btf import BtfBuilder, Member
from tests.synthetic.kallsyms import BuiltKallsyms, Line, Order, build_kallsyms

__all__ = ["BANNER", "LINK_START", "SYMBOLS", "SmallKernel", "small_types"]

LINK_START: Final = 0xFFFF_FFFF_8100_0000
BANNER: Final = b"Linux version 6.1.0-small (gcc) #1 SMP"
IMAGE_SIZE: Final = 0x20000
TABLES_AT: Final = 0x10000
BTF_AT: Final = 0x18000
BANNER_AT: Final = 0x8000
TAINTS_AT: Final = 0x9000

SYMBOLS: Final = (
    # Without KASLR; below 2^63 an offset into per-CPU areas
    Line(0x0, "A", "__per_cpu_start"),
    Line(0x1F80, "A", "runqueues"),
    Line(LINK_START, "T", "_text"),
    Line(LINK_START, "T", "_stext"),
    Line(LINK_START + 0x100, "T", "schedule"),
    Line(LINK_START + 0x140, "t", "twice"),
    Line(LINK_START + 0x180, "t", "twice"),
    Line(LINK_START + BANNER_AT, "D", "linux_banner"),
    Line(LINK_START + TAINTS_AT, "D", "taint_flags"),
    Line(LINK_START + TAINTS_AT + 64, "B", "__per_cpu_offset"),
    Line(LINK_START + TAINTS_AT + 128, "B", "init_task"),
    Line(LINK_START + TAINTS_AT + 192, "B", "tk_core"),
    Line(LINK_START + BTF_AT, "R", "__start_BTF"),
    Line(LINK_START + 0x1F000, "R", "__stop_BTF"),
    Line(LINK_START + IMAGE_SIZE, "B", "_end"),
)


def small_types() -> BtfBuilder:
    """These are types with one of everything that a reader must get right."""
    btf = BtfBuilder()
    number = btf.int_("int", 4, signed=True)
    unsigned = btf.int_("unsigned int", 4)
    char = btf.int_("char", 1, signed=True)
    comm = btf.array(char, unsigned, 16)
    state = btf.struct_("", 8, [Member("first", number), Member("second", number, 4)])
    either = btf.union("", 8, [Member("", state), Member("both", number)])
    task = btf.typedef("task_t", btf.next_id + 1)
    members = [
        *(Member("pid", number), Member("__state", unsigned, 4), Member("", either, 8)),
        *(Member("comm", comm, 16), Member("parent", btf.next_id + 1, 32)),
    ]
    btf.struct_("task_struct", 64, members)
    btf.pointer(task)
    widths = [("low", unsigned, 0, 3), ("high", unsigned, 3, 7), ("last", number, 31, 1)]
    btf.struct_("flags", 4, [Member(name, of, 0, at, bits) for name, of, at, bits in widths])
    letters = ("c_true", "c_false", "module")
    btf.struct_("taint_flag", 3, [Member(name, char, at) for at, name in enumerate(letters)])
    btf.struct_("timekeeper", 16, [Member("xtime_sec", number)])
    btf.struct_("endless", 8, [Member("", btf.next_id), Member("never", number)])
    btf.enum("pageflags", {"PG_locked": 0, "PG_head": 16})
    btf.enum64("wide", {"low": 1, "high": 1 << 40})
    btf.variable("runqueues", btf.struct_("rq", 8, [Member("nr_running", unsigned)]))
    return btf


@dataclass(frozen=True)
class SmallKernel:
    """This is the kernel's image, at a place that KASLR chose.

    Attributes:
        slide: how far it was moved.
        btf: its type information; None for :func:`small_types`, empty for none.
        lines: its symbols as linked.
        order: of its tables.
    """

    slide: int = 0x1C00_0000
    btf: bytes | None = None
    lines: Sequence[Line] = SYMBOLS
    order: Order = "old"

    @property
    def start(self) -> int:
        return LINK_START + self.slide

    def live(self) -> LiveSymbols:
        """This is what reads the kernel's own tables."""
        image = self.image()

        def read(va: Va, size: int) -> bytes:
            offset = va - self.start
            if not 0 <= offset <= offset + size <= len(image):
                raise MemoryFault(va, size, kind="virtual")
            return image[offset : offset + size]

        at = Va(self.start + BANNER_AT)
        tables = self.tables()
        return LiveSymbols(read, tables, Profile(BANNER, at, tables))

    def image(self) -> bytes:
        """These are the bytes of the image."""
        image = bytearray(IMAGE_SIZE)
        parts = {
            BANNER_AT: BANNER + b"\n\0",
            TAINTS_AT: b"PG\x01F \x00S \x00",
            TABLES_AT: self.kallsyms().data,
            BTF_AT: small_types().build() if self.btf is None else self.btf,
        }
        for at, part in parts.items():
            image[at : at + len(part)] = part
        return bytes(image)

    def kallsyms(self) -> BuiltKallsyms:
        """These are the tables of its symbols, as they are where the kernel runs."""
        moved = [
            Line(one.address + self.slide if one.address >> 63 else one.address, one.type, one.name)
            for one in self.lines
        ]
        return build_kallsyms(moved, start=self.start + TABLES_AT, order=self.order)

    def tables(self) -> KallsymsTables:
        """This is where its symbols' tables lie."""
        built = self.kallsyms()
        relative = self.order == "place-relative"
        return KallsymsTables(
            names=Va(built.at["names"]),
            count=built.count,
            markers=Va(built.at["markers"]),
            token_table=Va(built.at["token_table"]),
            token_index=Va(built.at["token_index"]),
            offsets=Va(built.at["offsets"]),
            addressing=Addressing.PLACE_RELATIVE if relative else Addressing.ABSOLUTE_PERCPU,
            relative_base=built.relative_base,
            seqs_of_names=Va(built.at["seqs_of_names"]),
            long_names=True,
        )
