"""The forms that kallsyms has had, built by hand, with the answers that must be found for them."""

from dataclasses import dataclass
from functools import cache

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.symbols.kallsyms import Addressing, KallsymsTables
from tests.synthetic.kallsyms import BuiltKallsyms, Line, Order, build_kallsyms, plain_lines

__all__ = ["FORMS", "TABLES", "TEXT", "Form", "TableMemory", "built_form", "lines_of", "tables_of"]

TEXT = 0xFFFF_FFFF_8100_0000
TABLES = 0xFFFF_FFFF_8200_0000
PER_CPU = [
    Line(0, "A", "fixed_percpu_data"),
    Line(0x1000, "A", "cpu_info"),
    Line(0x2000, "D", "cpu_info"),
]
SAME_PLACE = [
    Line(TEXT - 0x20, "T", "_stext"),
    Line(TEXT - 0x20, "T", "_text"),
    Line(TEXT - 0x10, "t", "x"),
]


@dataclass(frozen=True)
class Form:
    """One way in which a kernel writes its tables."""

    order: Order
    seqs: bool
    addressing: Addressing


FORMS = {
    "5.10": Form("old", seqs=False, addressing=Addressing.ABSOLUTE_PERCPU),
    "6.1": Form("old", seqs=True, addressing=Addressing.ABSOLUTE_PERCPU),
    "6.12": Form("new", seqs=True, addressing=Addressing.ABSOLUTE_PERCPU),
    "6.12 of arm64": Form("new", seqs=True, addressing=Addressing.RELATIVE),
    "7.x": Form("place-relative", seqs=True, addressing=Addressing.PLACE_RELATIVE),
}


def lines_of(form: str, count: int = 600) -> list[Line]:
    """Per-CPU symbols where the form has them, two of one address, many others, and the end."""
    per_cpu = PER_CPU if FORMS[form].addressing is Addressing.ABSOLUTE_PERCPU else []
    end = Line(TEXT + 16 * count, "B", "_end")
    return [*per_cpu, *SAME_PLACE, *plain_lines(count, start=TEXT), end]


@cache
def built_form(form: str, count: int = 600, start: int = TABLES) -> BuiltKallsyms:
    wanted = FORMS[form]
    return build_kallsyms(
        lines_of(form, count),
        start=start,
        order=wanted.order,
        seqs=wanted.seqs,
        unsigned_offsets=wanted.addressing is Addressing.RELATIVE,
    )


def tables_of(
    built: BuiltKallsyms,
    addressing: Addressing = Addressing.ABSOLUTE_PERCPU,
    *,
    long_names: bool = True,
) -> KallsymsTables:
    """What must be found of built tables."""
    return KallsymsTables(
        names=Va(built.at["names"]),
        count=built.count,
        markers=Va(built.at["markers"]),
        token_table=Va(built.at["token_table"]),
        token_index=Va(built.at["token_index"]),
        offsets=Va(built.at["offsets"]),
        addressing=addressing,
        relative_base=built.relative_base,
        seqs_of_names=Va(built.at.get("seqs_of_names", 0)),
        long_names=long_names,
    )


class TableMemory:
    """The tables, with a page of zeros and then unmapped memory behind them."""

    def __init__(self, built: BuiltKallsyms) -> None:
        self.start = built.start
        self.data = bytearray(built.data) + bytes(4096)

    def read(self, va: Va, size: int) -> bytes:
        at = va - self.start
        if not 0 <= at <= at + size <= len(self.data):
            raise MemoryFault(va, size, kind="virtual")
        return bytes(self.data[at : at + size])
