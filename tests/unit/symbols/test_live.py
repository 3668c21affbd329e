"""Symbols and layouts taken from a kernel's own tables, one question at a time."""

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.layout import Field, NearestSymbol
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.profile import Profile
from tests.synthetic.btf import BtfBuilder, Member
from tests.synthetic.kallsyms import Line, build_kallsyms
from tests.unit.symbols.kallsyms_forms import TABLES, TEXT, TableMemory, tables_of

BTF_AT = 0xFFFF_FFFF_8300_0000


def types() -> BtfBuilder:
    """A struct with plain members, bit-fields, and anonymous structs in anonymous unions."""
    b = BtfBuilder()
    number = b.int_("unsigned int", 4)
    inner = b.struct_("", 8, [Member("deep", number), Member("deeper", number, 4)])
    anonymous = b.union("", 8, [Member("wide", number), Member("", b.const(inner))])
    members = [
        Member("state", number),
        Member("", anonymous, 8),
        Member("flag", number, bit_offset=129, bits=3),
        Member("comm", number, 20),
    ]
    b.struct_("task_struct", 24, members)
    return b


class World:
    """A kernel's memory with kallsyms and, between its two symbols, BTF."""

    def __init__(self, btf: bytes | None = None, *, room: int | None = None) -> None:
        self.btf = types().build() if btf is None else btf
        size = len(self.btf) if room is None else room
        lines = [
            Line(TEXT, "T", "_text"),
            Line(TEXT + 0x1000, "D", "init_task"),
            Line(BTF_AT, "r", "__start_BTF"),
            Line(BTF_AT + size, "r", "__stop_BTF"),
        ]
        built = build_kallsyms(
            [one for one in lines if self.btf or "BTF" not in one.name], start=TABLES
        )
        self.memory = TableMemory(built)
        self.tables = tables_of(built)
        self.reads = 0
        profile = Profile(b"Linux version 6.1", Va(TEXT), self.tables)
        self.symbols = LiveSymbols(self.read, self.tables, profile)

    def read(self, va: Va, size: int) -> bytes:
        self.reads += 1
        if not BTF_AT <= va < BTF_AT + 0x10_0000:
            return self.memory.read(va, size)
        found = self.btf[va - BTF_AT :][:size]
        if len(found) < size:
            raise MemoryFault(va, size, kind="virtual")
        return found


# ----------------------------------------------------------------------------------------------- symbols


def test_a_symbol_is_found_by_its_name() -> None:
    assert World().symbols.find("init_task") == TEXT + 0x1000


def test_a_symbol_the_kernel_lacks_is_none() -> None:
    assert World().symbols.find("swapper_pg_dir") is None


def test_what_was_asked_once_is_remembered() -> None:
    first = World()
    answer = first.symbols.find("init_task")
    again = World()
    warm = LiveSymbols(again.read, again.tables, first.symbols.profile)
    assert warm.find("init_task") == answer
    assert "kallsyms" not in vars(warm)


def test_an_answer_given_before_is_not_checked_again() -> None:
    world = World()
    answer, reads = world.symbols.find("init_task"), world.reads
    assert (world.symbols.find("init_task"), world.reads) == (answer, reads)


def test_that_a_symbol_is_lacking_is_asked_of_each_kernel() -> None:
    first = World()
    assert first.symbols.find("swapper_pg_dir") is None
    again = World()
    warm = LiveSymbols(again.read, again.tables, first.symbols.profile)
    assert warm.find("swapper_pg_dir") is None
    assert "kallsyms" in vars(warm)


def test_what_was_learned_from_altered_symbols_is_not_believed_of_others() -> None:
    liar = World()
    altered = bytearray(liar.memory.data)
    place = liar.tables.offsets + 4 - liar.memory.start  # of init_task, the second symbol
    altered[place] ^= 0x40
    liar.memory.data = altered
    lie = liar.symbols.find("init_task")
    honest = World()
    answer = LiveSymbols(honest.read, honest.tables, liar.symbols.profile).find("init_task")
    assert answer == World().symbols.find("init_task") != lie


def test_what_was_learned_from_altered_names_is_not_believed_of_others() -> None:
    liar = World(types().build().replace(b"\0comm\0", b"\0xcom\0").replace(b"state\0", b"comm\0\0"))
    lie = liar.symbols.find_field("task_struct", ["comm"])
    honest = World()
    warm = LiveSymbols(honest.read, honest.tables, liar.symbols.profile)
    assert warm.find_field("task_struct", ["comm"]) == Field("comm", 20) != lie


def test_the_nearest_symbol_is_of_no_module() -> None:
    found = World().symbols.nearest(Va(TEXT + 0x1234))
    assert found == NearestSymbol("init_task", Va(TEXT + 0x1000), "D", "")


def test_outside_of_the_kernel_no_symbol_is_near() -> None:
    assert World().symbols.nearest(Va(0x1000)) is None


def test_tables_that_cannot_be_read_are_corrupt_rather_than_absent() -> None:
    world = World()
    world.memory.data[64:] = b""
    for ask in (lambda: world.symbols.find("x"), lambda: world.symbols.nearest(Va(TEXT))):
        with pytest.raises(CorruptTable, match="kallsyms"):
            ask()


# ----------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("state",), Field("state", 0)),
        (("comm",), Field("comm", 20)),
        (("flag",), Field("flag", 16, bit_offset=1, bit_size=3)),
        (("wide",), Field("wide", 8)),
        (("deep",), Field("deep", 8)),
        (("deeper",), Field("deeper", 12)),
        (("__state", "state"), Field("state", 0)),
        (("deeper", "comm"), Field("comm", 20)),
        (("gone",), None),
        ((), None),
        (("",), None),
    ],
)
def test_a_member_is_found_wherever_it_lies(names: tuple[str, ...], field: Field | None) -> None:
    assert World().symbols.find_field("task_struct", names) == field


def test_a_type_the_kernel_lacks_has_no_members_and_no_size() -> None:
    symbols = World().symbols
    assert symbols.find_field("mm_struct", ["pgd"]) is None
    assert symbols.size_of("mm_struct") is None


def test_the_size_of_a_struct_is_told() -> None:
    assert World().symbols.size_of("task_struct") == 24


def test_layouts_asked_once_are_remembered() -> None:
    first = World()
    asked = first.symbols.find_field("task_struct", ["comm"]), first.symbols.size_of("task_struct")
    again = World()
    warm = LiveSymbols(again.read, again.tables, first.symbols.profile)
    assert (warm.find_field("task_struct", ["comm"]), warm.size_of("task_struct")) == asked
    assert not {"kallsyms", "btf"} & vars(warm).keys()


def test_what_was_learned_from_altered_types_is_not_believed_of_others() -> None:
    altered = bytearray(types().build())
    altered[altered.index((8 * 20).to_bytes(3, "little") + b"\0")] ^= 0x20
    liar = World(bytes(altered))
    lie = liar.symbols.find_field("task_struct", ["comm"])
    honest = World()
    warm = LiveSymbols(honest.read, honest.tables, liar.symbols.profile)
    assert warm.find_field("task_struct", ["comm"]) == Field("comm", 20) != lie


def test_a_kernel_without_type_information_has_no_layouts() -> None:
    symbols = World(b"").symbols
    assert (symbols.btf, symbols.find_field("task_struct", ["comm"])) == (None, None)
    assert symbols.size_of("task_struct") is None


# ----------------------------------------------------------------------------------- what contradicts itself


def test_type_information_larger_than_its_place_is_refused() -> None:
    with pytest.raises(CorruptTable, match="do not fit between its symbols"):
        World(room=30).symbols.size_of("task_struct")


@pytest.mark.parametrize("size", [10, 30])
def test_type_information_that_cannot_be_read_is_refused(size: int) -> None:
    whole = types().build()
    with pytest.raises(CorruptTable, match="BTF"):
        World(whole[:size], room=len(whole)).symbols.size_of("task_struct")


def test_an_anonymous_struct_within_itself_is_refused() -> None:
    b = BtfBuilder()
    b.struct_("", 8, [Member("", 1)])
    b.struct_("task_struct", 8, [Member("", 1)])
    with pytest.raises(CorruptTable, match="nest too deep"):
        World(b.build()).symbols.find_field("task_struct", ["comm"])


def test_anonymous_structs_that_multiply_are_refused() -> None:
    b = BtfBuilder()
    b.int_("int", 4)
    for _ in range(10):
        b.struct_("", 8, [Member("", b.next_id - 1)] * 100)
    b.struct_("task_struct", 8, [Member("", b.next_id - 1)])
    with pytest.raises(CorruptTable, match="members and more"):
        World(b.build()).symbols.find_field("task_struct", ["comm"])
